"""Which models are served, by what, and where a call goes: deployments, backends, the router."""

from quickmatch.fleet.backend import Backend, Notes, Target
from quickmatch.fleet.fleet import Fleet, ServedModel
from quickmatch.fleet.router import Route

__all__ = ["Backend", "Fleet", "Notes", "Route", "ServedModel", "Target"]
