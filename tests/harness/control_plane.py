"""The real Kubernetes control plane as local processes: etcd, API server, controllers, scheduler.

Ports are fixed because the network namespace is private. Each part can be killed, frozen and
started again on its own; the data folder carries the state over.
"""

import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from harness import audit, credentials, namespace, tools
from harness.credentials import ADMIN, CONTROLLER_MANAGER, SCHEDULER, User
from harness.processes import Component
from harness.waiting import eventually

API_PORT = 6443
SERVER = f"https://127.0.0.1:{API_PORT}"
_ETCD = "http://127.0.0.1:2379"
_ETCD_PEER = "http://127.0.0.1:2380"
_READY_WITHIN = 60.0


class ControlPlane:
    """Starts, breaks and stops the four processes, and writes their users' kubeconfigs."""

    def __init__(
        self,
        folder: Path,
        users: Sequence[User],
        *,
        controller_flags: Sequence[str] = (),
        api_flags: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.audit_log = audit.AuditLog(folder / "audit.log")
        self.certificate = folder / "pki" / "apiserver.crt"
        self.certificate_key = folder / "pki" / "apiserver.key"
        self._users = (ADMIN, CONTROLLER_MANAGER, SCHEDULER, *users)
        self._write_inputs()
        self.etcd = self._component("etcd", _etcd_flags(folder))
        self.api_server = self._component("kube-apiserver", _api_flags(folder) + list(api_flags))
        self.controllers = self._component(
            "kube-controller-manager", self._controller_flags() + list(controller_flags)
        )
        self.scheduler = self._component("kube-scheduler", self._scheduler_flags())

    @property
    def parts(self) -> tuple[Component, ...]:
        return (self.etcd, self.api_server, self.controllers, self.scheduler)

    def start(self) -> None:
        """Return when the API server answers and the controllers have begun to work."""
        if not namespace.is_inside():
            raise namespace.NamespaceError(
                "a control plane starts only inside `python -m harness.namespace`"
            )
        self.etcd.start()
        self.api_server.start()
        self.wait_ready()
        # They read the API server's certificate, which its first start has just made.
        self.controllers.start()
        self.scheduler.start()
        # Without it no pod can be created in `default`: its admission wants the account.
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        eventually(lambda: self._answers(path), "the default service account", within=30)

    def wait_ready(self) -> None:
        """Return when the API server is ready; used after it was killed and started, too."""

        def ready() -> bool:
            for part in (self.etcd, self.api_server):
                part.check_running()
            return self._answers("/readyz")

        eventually(ready, "the API server is ready", within=_READY_WITHIN)

    def resume(self) -> None:
        """End an outage of the API server: start it, return when it is ready.

        Controllers and scheduler begin anew, as in a cluster where they lose their leases;
        left alone, their watches come back only after a back-off of up to a minute.
        """
        self.api_server.restart()
        self.wait_ready()
        self.controllers.restart()
        self.scheduler.restart()

    def stop(self) -> None:
        for part in reversed(self.parts):
            part.kill()

    def kubeconfig(self, user: str) -> Path:
        """The kubeconfig of a user of the token file."""
        return self.folder / f"{user.replace(':', '-')}.kubeconfig"

    def _component(self, name: str, flags: Sequence[str]) -> Component:
        argv = [str(tools.require(name)), *flags]
        return Component(name, argv, self.folder / f"{name}.log")

    def _write_inputs(self) -> None:
        credentials.write_signing_key(self.folder / "accounts.key")
        credentials.write_token_file(self.folder / "tokens.csv", self._users)
        audit.write_policy(self.folder / "audit.yaml")
        for user in self._users:
            credentials.write_kubeconfig(
                self.kubeconfig(user.name),
                server=SERVER,
                authority=self.certificate,
                token=user.token,
            )

    def _controller_flags(self) -> list[str]:
        return [
            *self._client_flags(CONTROLLER_MANAGER),
            f"--service-account-private-key-file={self.folder / 'accounts.key'}",
            "--use-service-account-credentials=true",
            # Without it no pod with a token volume starts: kube-root-ca.crt is missing.
            f"--root-ca-file={self.certificate}",
            f"--cert-dir={self.folder / 'pki-controllers'}",
        ]

    def _scheduler_flags(self) -> list[str]:
        return [*self._client_flags(SCHEDULER), f"--cert-dir={self.folder / 'pki-scheduler'}"]

    def _client_flags(self, user: User) -> list[str]:
        path = self.kubeconfig(user.name)
        return [
            f"--kubeconfig={path}",
            f"--authentication-kubeconfig={path}",
            f"--authorization-kubeconfig={path}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            # The defaults (20 and 50 per second) are for sparing a shared API server.
            "--kube-api-qps=1000",
            "--kube-api-burst=2000",
        ]

    def _answers(self, path: str) -> bool:
        if not self.certificate.exists():
            return False
        context = ssl.create_default_context(cafile=self.certificate)
        headers = {"Authorization": f"Bearer {ADMIN.token}"}
        request = urllib.request.Request(SERVER + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=2, context=context):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _etcd_flags(folder: Path) -> list[str]:
    return [
        f"--data-dir={folder / 'etcd'}",
        # A test's data need not survive a power cut, only a kill.
        "--unsafe-no-fsync",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={_ETCD_PEER}",
        f"--initial-advertise-peer-urls={_ETCD_PEER}",
        f"--initial-cluster=default={_ETCD_PEER}",
    ]


def _api_flags(folder: Path) -> list[str]:
    return [
        f"--etcd-servers={_ETCD}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={API_PORT}",
        f"--cert-dir={folder / 'pki'}",
        f"--service-account-key-file={folder / 'accounts.key'}",
        f"--service-account-signing-key-file={folder / 'accounts.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={namespace.SERVICE_NETWORK}",
        "--allow-privileged=true",
        # It would publish 127.0.0.1, which the API refuses as an endpoint address.
        "--endpoint-reconciler-type=none",
        f"--audit-policy-file={folder / 'audit.yaml'}",
        f"--audit-log-path={folder / 'audit.log'}",
        "--kubelet-preferred-address-types=InternalIP",
    ]
