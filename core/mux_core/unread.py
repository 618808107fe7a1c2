"""LLMDeployments that cannot be read: what runs of them runs on, nothing new is started.

A manifest can become unreadable while its model serves: it was stored before a schema change, or
written past the API server. Its last unit records say how it runs, its status what it was
resolved to; a spec made of these asks for exactly that.
"""

from dataclasses import replace

from mux_core.llm import SharingPolicy, Slo
from mux_core.snapshot import LlmObject, Observation
from mux_core.specs import LlmSpec, ModelSource, Scheme
from mux_core.units import Bytes
from mux_core.unitspec import MemberSpec

_NOWHERE = ModelSource(scheme=Scheme.PVC, location="")


def with_unread(seen: Observation) -> Observation:
    """`seen` with a spec in every LLMDeployment; `spec_error` still tells the unread ones."""
    llms = tuple(item if item.spec is not None else _as_it_runs(item, seen) for item in seen.llms)
    return seen if llms == seen.llms else replace(seen, llms=llms)


def _as_it_runs(item: LlmObject, seen: Observation) -> LlmObject:
    members = [m for record in seen.units for m in record.spec.members if m.model == item.name]
    if members:
        spec = _spec_of(members, pool=seen.key.name, source=_source(item))
        return replace(item, spec=spec, path=members[0].path)
    named = item.status.served_name or item.name
    return replace(item, path="", spec=LlmSpec(pool=item.pool, source=_NOWHERE, served_name=named))


def _source(item: LlmObject) -> ModelSource:
    """Where the checkpoint that runs came from, as the status remembers."""
    for known in (item.status.resolved, item.status.previous):
        if known is not None and not known.error_reason:
            scheme, _, location = known.source.partition("://")
            return ModelSource(scheme=Scheme(scheme), location=location)
    return _NOWHERE


def _spec_of(members: list[MemberSpec], *, pool: str, source: ModelSource) -> LlmSpec:
    """Exclusive, for the tenant group is unknown: who shares already stays, nobody joins."""
    first, count = members[0], len(members)
    kv_request = Bytes(first.kv_guaranteed_bytes * first.tensor)
    slo = None
    if first.slo_ttft_s is not None or first.slo_tpot_s is not None:
        slo = Slo(ttft_s=first.slo_ttft_s, tpot_s=first.slo_tpot_s)
    return LlmSpec(
        pool=pool, source=source, served_name=first.served_name, engine=first.engine,
        dtype=first.dtype, max_model_len=first.max_model_len, allowed_tensor=(first.tensor,),
        min_replicas=count, max_replicas=count, slo=slo, priority=first.priority,
        sharing=SharingPolicy(exclusive=True, kv_request=kv_request),
        drain_timeout_s=first.drain_timeout_s, movable=False,
    )  # fmt: skip


__all__ = ["with_unread"]
