"""kubectl and helm as a test calls them: as one user, in one namespace."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness import tools
from harness.api import Object
from harness.waiting import eventually


class CommandError(Exception):
    """The command failed; the message is its command line and what it printed."""

    def __init__(self, argv: Sequence[str], result: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"{' '.join(argv)} -> {result.returncode}\n{result.stderr}")
        self.stderr = result.stderr
        self.code = result.returncode


class Command:
    """A command-line tool bound to a kubeconfig and a namespace."""

    def __init__(self, tool: str, kubeconfig: Path, namespace: str) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace
        self._path = str(tools.require(tool))

    def __call__(self, *arguments: str, stdin: str | None = None, seconds: float = 120.0) -> str:
        """Standard output; raises CommandError with standard error."""
        argv = [self._path, "--namespace", self.namespace, *arguments]
        result = subprocess.run(
            argv,
            input=stdin,
            text=True,
            capture_output=True,
            env=environment(self.kubeconfig),
            timeout=seconds,
            check=False,
        )
        if result.returncode != 0:
            raise CommandError(argv, result)
        return result.stdout


class Kubectl(Command):
    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        super().__init__("kubectl", kubeconfig, namespace)

    def apply(self, *objects: Object) -> None:
        """Server-side apply, as the test's own field manager."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        text = json.dumps(items)
        self("apply", "--server-side", "--field-manager=test", "-f", "-", stdin=text)

    def get(self, *arguments: str) -> Object:
        """`kubectl get ARGUMENTS` as an object."""
        found: Object = json.loads(self("get", *arguments, "-o", "json"))
        return found

    def exists(self, *arguments: str) -> bool:
        return bool(self("get", *arguments, "--ignore-not-found", "-o", "name"))

    def wait_ready(self, pod: str, *, within: float = 30.0) -> Object:
        """The pod once it is Ready; the error shows its status."""

        def ready() -> Object | None:
            found = self.get("pod", pod)
            status = found.get("status", {})
            conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
            assert conditions.get("Ready") == "True", json.dumps(status)
            return found

        found = eventually(ready, f"pod {pod} is Ready", within=within)
        assert found is not None
        return found


class Helm(Command):
    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        super().__init__("helm", kubeconfig, namespace)


def environment(kubeconfig: Path) -> dict[str, str]:
    """For a command that talks to the test cluster; its caches stay beside the kubeconfig."""
    caches = {
        name: str(kubeconfig.parent / "helm" / name)
        for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
    }
    kubectl_cache = str(kubeconfig.parent / "kubectl-cache")
    own = {"KUBECONFIG": str(kubeconfig), "KUBECACHEDIR": kubectl_cache}
    return dict(os.environ) | caches | own
