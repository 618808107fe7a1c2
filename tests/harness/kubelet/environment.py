"""The environment and the command line of a container, as a kubelet makes them."""

import re
from collections.abc import Mapping
from typing import cast

from harness.api import Object
from harness.kubelet.inputs import NotYetError, PodInputs
from harness.kubelet.settings import KubeletSettings
from harness.kubelet.sources import Kind

_REFERENCE = re.compile(r"\$\$|\$\(([\w.-]+)\)")
_KEY_SOURCES: dict[str, Kind] = {"configMapKeyRef": "configmaps", "secretKeyRef": "secrets"}
_ALL_SOURCES: dict[str, Kind] = {"configMapRef": "configmaps", "secretRef": "secrets"}


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $(NAME); an unknown name stays as it is, $$ is one dollar."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else values.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def base_environment(settings: KubeletSettings, hostname: str, folder: str) -> dict[str, str]:
    """What every container has; the pod's own values come on top."""
    return {
        "PATH": settings.path,
        "HOME": folder,
        # The container shares the machine's /tmp, where two pods would meet.
        "TMPDIR": folder,
        "HOSTNAME": hostname,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "KUBERNETES_SERVICE_HOST": settings.service_host,
        "KUBERNETES_SERVICE_PORT": str(settings.service_port),
    }


async def environment(
    inputs: PodInputs, container: Object, base: Mapping[str, str]
) -> dict[str, str]:
    """The container's variables; raises NotYetError while a source is missing."""
    values = dict(base)
    for source in container.get("envFrom") or []:
        values |= await _all_entries(inputs, source)
    for variable in container.get("env") or []:
        value = await _value(inputs, container, variable, values)
        if value is not None:
            values[variable["name"]] = value
    return values


def command(
    container: Object, values: Mapping[str, str], entrypoints: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """The command line: `command` replaces the image's entry point, `args` follow."""
    entrypoint = entrypoints.get(_repository(container.get("image", "")), ())
    words = [*(container.get("command") or entrypoint), *(container.get("args") or [])]
    if not words:
        raise NotYetError(f"container {container['name']} has no command and its image none")
    return [expand(word, values) for word in words]


def _repository(image: str) -> str:
    name = image.split("@", 1)[0]
    head, slash, tail = name.rpartition("/")
    return head + slash + tail.split(":", 1)[0]


async def _all_entries(inputs: PodInputs, source: Object) -> dict[str, str]:
    prefix = source.get("prefix", "")
    for key, kind in _ALL_SOURCES.items():
        if key in source:
            reference = source[key]
            optional = bool(reference.get("optional"))
            entries = await inputs.entries(kind, reference["name"], optional=optional)
            return {prefix + name: value.decode() for name, value in entries.items()}
    return {}


async def _value(
    inputs: PodInputs, container: Object, variable: Object, values: Mapping[str, str]
) -> str | None:
    origin = variable.get("valueFrom")
    if origin is None:
        return expand(variable.get("value", ""), values)
    if "fieldRef" in origin:
        return inputs.field(origin["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in origin:
        return inputs.resource(origin["resourceFieldRef"], container)
    key = next(key for key in _KEY_SOURCES if key in origin)
    reference = cast(Object, origin[key])
    optional = bool(reference.get("optional"))
    entries = await inputs.entries(_KEY_SOURCES[key], reference["name"], optional=optional)
    if reference["key"] in entries:
        return entries[reference["key"]].decode()
    if optional:
        return None
    raise NotYetError(f"couldn't find key {reference['key']} in {key} {reference['name']}")
