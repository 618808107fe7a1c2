"""Profile files as commands take them: read, and refused where they say nothing of this machine."""

from collections.abc import Sequence
from pathlib import Path

from mux_cli.profile_origin import ENGINE_PATHS, release
from mux_core.costmodel.profile_file import load_profiles
from mux_core.costmodel.profile_set import CPU, MadeOn, ProfileSet
from mux_core.costmodel.sources import ProfileCatalog
from mux_core.errors import SpecError


def read_profiles(paths: Sequence[Path], *, here: bool = False) -> ProfileCatalog | None:
    """The profiles of these files; None for no file. `here`: they must be of this machine."""
    if not paths:
        return None
    found = tuple(_read(path, here=here) for path in paths)
    return ProfileCatalog(found)


def _read(path: Path, *, here: bool) -> ProfileSet:
    subject = f"profile {path}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{subject}: cannot be read ({error}); give a file that muxserve profile "
                        "wrote") from error  # fmt: skip
    found = load_profiles(text, subject=subject)
    _check_release(found.made, subject)
    if here:
        _check_device(found, subject)
    return found


def _check_release(made: MadeOn, subject: str) -> None:
    if made.release != release():
        raise SpecError(f"{subject}: measured with release {made.release}, this is {release()}; "
                        "measure again with muxserve profile")  # fmt: skip
    if made.path not in ENGINE_PATHS.values():
        raise SpecError(f"{subject}: measured on engine path {made.path}, this release has "
                        f"{', '.join(ENGINE_PATHS.values())}; measure again")  # fmt: skip


def _check_device(found: ProfileSet, subject: str) -> None:
    from mux_runtime.profiling.devices import cores, cpu_name

    if found.gpu != CPU:
        raise SpecError(f"{subject}: measured on {found.made.device}; the units run on this "
                        "machine's CPU: profile with --device cpu")  # fmt: skip
    this = cpu_name(cores())
    if found.made.device != this:
        raise SpecError(f"{subject}: measured on {found.made.device}, this machine is {this}; "
                        "measure here with muxserve profile")  # fmt: skip
