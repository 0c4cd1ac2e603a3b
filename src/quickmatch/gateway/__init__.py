"""HTTP: the OpenAI API, health and metrics; the path of a request."""
