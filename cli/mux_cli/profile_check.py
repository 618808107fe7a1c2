"""Profile files as commands take them: read, and refused where they say nothing of this machine."""

from collections.abc import Sequence
from pathlib import Path

from mux_core.costmodel.profile_set import CPU, ProfileSet
from mux_core.costmodel.sources import ProfileCatalog
from mux_core.errors import SpecError
from mux_operator.profiles import read_profile


def read_profiles(paths: Sequence[Path], *, here: bool = False) -> ProfileCatalog | None:
    """The profiles of these files; None for no file. `here`: they must be of this machine."""
    if not paths:
        return None
    found = tuple(read_profile(path) for path in paths)
    if here:
        for path, profiles in zip(paths, found, strict=True):
            _check_device(profiles, f"profile {path}")
    return ProfileCatalog(found)


def _check_device(found: ProfileSet, subject: str) -> None:
    from mux_runtime.profiling.devices import cores, cpu_name

    if found.gpu != CPU:
        raise SpecError(f"{subject}: measured on {found.made.device}; the units run on this "
                        "machine's CPU: profile with --device cpu")  # fmt: skip
    this = cpu_name(cores())
    if found.made.device != this:
        raise SpecError(f"{subject}: measured on {found.made.device}, this machine is {this}; "
                        "measure here with muxserve profile")  # fmt: skip
