"""The version of this installation."""

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    try:
        return version("muxserve-operator")
    except PackageNotFoundError:
        return "unknown"
