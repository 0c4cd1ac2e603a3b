"""A whole server as its own process: store, fleet, cache, gateway, uvicorn.

python -m tests.e2e.server HOME PORT
"""

import sys
from pathlib import Path

import uvicorn

from quickmatch.caching import ExactCache
from quickmatch.core.settings import Home
from quickmatch.fleet import Fleet
from quickmatch.gateway import create_app
from quickmatch.observe import Metrics, TraceWriter
from quickmatch.store.open import open_store


def main() -> None:
    """Serve the home until SIGTERM."""
    home, port = Home(Path(sys.argv[1])), int(sys.argv[2])
    store = open_store(home)
    metrics = Metrics()
    fleet = Fleet(store, home, metrics=metrics, url=f"http://127.0.0.1:{port}/v1")
    app = create_app(fleet, ExactCache(store), TraceWriter(store, metrics))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=5)
    store.close()


if __name__ == "__main__":
    main()
