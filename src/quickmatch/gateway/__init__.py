"""HTTP: the OpenAI API and the path of a request through the house."""

from quickmatch.gateway.app import create_app
from quickmatch.gateway.path import PathSettings

__all__ = ["PathSettings", "create_app"]
