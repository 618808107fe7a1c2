"""The demo's manifests, as a person would write them; pure but for `write_manifests`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

DEMO_MEMORY: Final = "512Mi"
"""Weights plus KV of all three: some 20 MiB of weights, the rest is KV they share."""

_POOL: Final = """\
apiVersion: muxserve.io/v1alpha1
kind: GPUPool
metadata:
  name: default
spec:
  runtime:
    device: CPU
  gpu:
    static:
    - node: this-machine
      count: 1
      memory: {memory}
"""

_LLM: Final = """\
apiVersion: muxserve.io/v1alpha1
kind: LLMDeployment
metadata:
  name: {name}
spec:
  model:
    uri: file://{path}
  workload:
    requestRate: "{rate}"
    isl: 32
    osl: 48
"""

RATES: Final = (2, 1, 1)
"""Declared requests/s: the first model is the popular one."""


def write_manifests(folder: Path, models: Mapping[str, Path], *, memory: str = DEMO_MEMORY) -> Path:
    """One file per object, in place of what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.yaml"):
        old.unlink()
    (folder / "pool.yaml").write_text(_POOL.format(memory=memory))
    for index, (name, path) in enumerate(models.items()):
        rate = RATES[min(index, len(RATES) - 1)]
        (folder / f"{name}.yaml").write_text(llm_manifest(name, path, rate=rate))
    return folder


def llm_manifest(name: str, path: Path, *, rate: float = 1) -> str:
    return _LLM.format(name=name, path=path.resolve(), rate=rate)
