"""A process kubelet from outside: what a test starts, kills, freezes and reads logs from."""

import os
import sys
from pathlib import Path
from typing import Protocol

from harness.control_plane import ControlPlane
from harness.folders import release_mounts
from harness.kubelet.settings import KubeletSettings, NodeSettings
from harness.processes import Component


class Node(Protocol):
    """A node of the test cluster, whatever its kubelet is."""

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Begin; the node becomes Ready by itself."""

    def stop(self) -> None:
        """End everything that runs on it, at once, as when the machine is gone."""

    def check(self) -> None:
        """Raise when its kubelet has ended by itself."""


class ProcessNode:
    """A node whose pods are local processes. Killing `kubelet` is the loss of the machine."""

    def __init__(self, control_plane: ControlPlane, settings: NodeSettings) -> None:
        self.settings = settings
        self.folder = control_plane.folder / settings.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._kubelet_settings = KubeletSettings(
            node=settings,
            kubeconfig=control_plane.kubeconfig(f"system:node:{settings.name}"),
            folder=self.folder,
            certificate=control_plane.certificate,
            certificate_key=control_plane.certificate_key,
            path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        )
        settings_file = self.folder / "settings.json"
        settings_file.write_text(self._kubelet_settings.to_json())
        argv = [sys.executable, "-m", "harness.kubelet.main", str(settings_file)]
        self.kubelet = Component(
            f"kubelet-{settings.name}",
            argv,
            self.folder / "kubelet.log",
            environment={"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        )

    @property
    def name(self) -> str:
        return self.settings.name

    def start(self) -> None:
        self.kubelet.start()

    def stop(self) -> None:
        self.kubelet.kill()
        release_mounts(self.folder)

    def check(self) -> None:
        self.kubelet.check_running()

    def log(self, namespace: str, pod: str, container: str = "") -> str:
        """All output of a pod's containers so far, also of a pod that is gone."""
        pattern = f"{namespace}_{pod}_*_{container or '*'}.*.log"
        logs = sorted(self._kubelet_settings.logs_folder.glob(pattern))
        return "".join(path.read_text(errors="replace") for path in logs)
