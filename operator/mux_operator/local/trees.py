"""Units and the gateway as process trees of this machine: start, stop, notice the end.

Decides nothing: which incarnation runs is the reconciler's. `poll` is called often and is cheap.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mux_core.snapshot import Carrier, CarrierState, GatewayAddress, UnitAddress, UnitRecord
from mux_core.specs import PoolKey
from mux_core.units import ModelName, NodeName, UnitId
from mux_core.unitspec import to_json
from mux_operator.local.commands import gateway_command, unit_command
from mux_operator.local.datadir import DataDir, write_json
from mux_operator.local.ports import HOST, Ports
from mux_operator.local.processes import Child, start

GRACE_S = 15.0
"""Beyond the members' own drain time, before a unit that was asked to end is killed."""


@dataclass(slots=True, kw_only=True)
class Tree:
    """One incarnation of a unit. `kill_at`: when a stopping one is killed."""

    pool: PoolKey
    node: NodeName
    child: Child
    carrier: Carrier
    drain_s: float
    kill_at: float | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        address = self.carrier.address
        return () if address is None else (address.http, address.internal, address.metrics,
                                           address.control)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTree:
    """The running gateway and its ports."""

    number: int
    child: Child
    port: int
    metrics: int
    control: int

    @property
    def address(self) -> GatewayAddress:
        return GatewayAddress(name=self.child.name, host=HOST, control=self.control)


@dataclass(slots=True)
class Trees:
    """All process trees of this server."""

    data: DataDir
    clock: Callable[[], float]
    ports: Ports = field(default_factory=Ports)
    by_unit: dict[UnitId, Tree] = field(default_factory=dict)
    gateway: GatewayTree | None = None
    gateway_kill_at: float | None = None
    deaths: list[str] = field(default_factory=list)
    """What to tell people of units that ended unasked; the caller empties it."""

    def start_unit(self, key: PoolKey, record: UnitRecord) -> None:
        """Starts the record's incarnation; starting it twice starts it once."""
        running = self.by_unit.get(record.unit)
        if running is not None:
            if running.carrier.incarnation >= record.spec.incarnation:
                return
            self.discard(record.unit)
        name = f"{record.unit}-{record.spec.incarnation}"
        http, internal, metrics, control = self.ports.draw(4)
        address = UnitAddress(host=HOST, http=http, internal=internal, metrics=metrics,
                              control=control)  # fmt: skip
        run_dir = self.data.run / name
        run_dir.mkdir(mode=0o700)
        spec = self.data.run / f"{name}.json"
        write_json(spec, to_json(record.spec))
        child = start(name, unit_command(spec=spec, run_dir=run_dir, address=address),
                      log=self.data.logs / f"{name}.log")  # fmt: skip
        carrier = Carrier(unit=record.unit, incarnation=record.spec.incarnation, name=name,
                          state=CarrierState.RUNNING, node=record.group.node,
                          address=address)  # fmt: skip
        drain_s = max((m.drain_timeout_s for m in record.spec.members), default=0.0)
        self.by_unit[record.unit] = Tree(pool=key, node=record.group.node, child=child,
                                         carrier=carrier, drain_s=drain_s)  # fmt: skip
        self._record()

    def stop_unit(self, unit: UnitId, incarnation: int) -> None:
        """SIGTERM, once; a tree that ended already is forgotten."""
        tree = self.by_unit.get(unit)
        if tree is None or tree.carrier.incarnation != incarnation:
            return
        if tree.carrier.state is CarrierState.DEAD:
            self.discard(unit)
        elif tree.kill_at is None:
            tree.kill_at = self.clock() + tree.drain_s + GRACE_S
            tree.carrier = replace(tree.carrier, state=CarrierState.STOPPING)
            tree.child.terminate()

    def label(self, unit: UnitId, incarnation: int, *, serving: frozenset[ModelName],
              draining: frozenset[ModelName]) -> None:  # fmt: skip
        """Notes which models the carrier serves; here nothing selects by it."""
        tree = self.by_unit.get(unit)
        if tree is not None and tree.carrier.incarnation == incarnation:
            tree.carrier = replace(tree.carrier, serving=serving, draining=draining)

    def poll(self) -> frozenset[PoolKey]:
        """Notices ended units and kills those past their time; pools to look at again."""
        marked = set()
        for unit, tree in list(self.by_unit.items()):
            code = tree.child.exit_code
            if code is None:
                if tree.kill_at is not None and self.clock() > tree.kill_at:
                    tree.child.kill_group()
                continue
            if tree.carrier.state is CarrierState.DEAD:
                continue
            marked.add(tree.pool)
            if tree.carrier.state is CarrierState.STOPPING:
                self.discard(unit)
                continue
            tail = tree.child.log_tail()
            message = f"{tree.carrier.name} ended with code {code}" + (f": {tail}" if tail else "")
            tree.carrier = replace(tree.carrier, state=CarrierState.DEAD, address=None,
                                   message=message)  # fmt: skip
            self.deaths.append(message)
            self._record()
        return frozenset(marked)

    def discard(self, unit: UnitId) -> None:
        """Ends what is left of a tree at once and removes its run directory."""
        tree = self.by_unit.pop(unit, None)
        if tree is None:
            return
        tree.child.kill_group()
        tree.child.process.wait()
        self.ports.give_back(tree.ports)
        shutil.rmtree(self.data.run / tree.carrier.name, ignore_errors=True)
        (self.data.run / f"{tree.carrier.name}.json").unlink(missing_ok=True)
        self._record()

    def stop_all(self) -> None:
        """Asks the gateway and every unit to drain and end; what they run finishes together."""
        if self.gateway is not None:
            self.gateway.child.terminate()
        for unit, tree in list(self.by_unit.items()):
            self.stop_unit(unit, tree.carrier.incarnation)

    def kill_all(self) -> None:
        """Ends everything now."""
        if self.gateway is not None:
            self.gateway.child.kill_group()
        for unit in list(self.by_unit):
            self.discard(unit)

    def end(self) -> bool:
        """Moves the end on after `stop_all`: kills what is past its time; whether all is gone."""
        self.poll()
        gateway = self.gateway
        if gateway is None or gateway.child.exit_code is not None:
            return not self.by_unit
        if not self.by_unit:
            # The gateway outlives the streams it relays; without units it has none.
            self.gateway_kill_at = self.gateway_kill_at or self.clock() + GRACE_S
            if self.clock() > self.gateway_kill_at:
                gateway.child.kill_group()
        return False

    def supervisors(self) -> tuple[tuple[Carrier, int], ...]:
        """Every carrier with the pid of its supervisor."""
        return tuple((t.carrier, t.child.pid) for _, t in sorted(self.by_unit.items()))

    def carriers(self, key: PoolKey) -> tuple[Carrier, ...]:
        return tuple(t.carrier for _, t in sorted(self.by_unit.items()) if t.pool == key)

    def _record(self) -> None:
        children = {t.carrier.name: t.child.identity for t in self.by_unit.values()
                    if t.child.exit_code is None}  # fmt: skip
        if self.gateway is not None:
            children[self.gateway.child.name] = self.gateway.child.identity
        self.data.record(children)

    def start_gateway(self, port: int) -> None:
        """Starts the gateway on `port`; a new one after each end, told apart by its name."""
        number = 1 if self.gateway is None else self.gateway.number + 1
        metrics, control = self.ports.draw(2)
        name = f"gateway-{number}"
        child = start(name, gateway_command(routes=self.data.routes, http=port, metrics=metrics,
                                            control=control),
                      log=self.data.logs / f"{name}.log")  # fmt: skip
        self.gateway = GatewayTree(number=number, child=child, port=port, metrics=metrics,
                                   control=control)  # fmt: skip
        self._record()
