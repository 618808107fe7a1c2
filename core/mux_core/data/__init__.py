"""Tables shipped with the package; README.md beside them states where each comes from."""

from importlib.resources import files


def read_text(name: str) -> str:
    """The shipped file `name`; part of the package, so the same in every process."""
    return (files(__name__) / name).read_text(encoding="utf-8")
