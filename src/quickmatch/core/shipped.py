"""The small base model that ships in the package, known everywhere by one name."""

from pathlib import Path

SHIPPED_MODEL = "quickmatch-base"


def model_source(path: str) -> str:
    """Return the folder of the shipped model for its name; any other path or id as it is.

    Documents keep the name, not the folder, so that a home outlives the environment that it was
    made in.
    """
    if path == SHIPPED_MODEL:
        return str(Path(__file__).resolve().parent.parent / "base_model")
    return path
