"""The prediction of a placement: every unit through one estimator, summed per LLM."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mux_core.estimator.unit import Ask, GroupKind, MemberOutcome, UnitForecast
from mux_core.llm import Llm
from mux_core.placement import Member, Placement, Unit
from mux_core.planners.assembly import kind_of
from mux_core.planning import MemberEstimate, PlacementProblem, Prediction
from mux_core.units import ModelName


def predict(problem: PlacementProblem, placement: Placement, estimator: UnitForecast) -> Prediction:
    """What `placement` gives, with the shares and rates it states."""
    llms = {llm.name: llm for llm in problem.llms}
    outcomes: dict[ModelName, list[tuple[float, MemberOutcome]]] = {}
    for unit in placement.units:
        kind = kind_of(problem, unit.group)
        if kind is None:
            continue
        for member, outcome in _outcomes(unit, kind, llms, estimator):
            outcomes.setdefault(member, []).append(outcome)
    models = {
        llm.name: _combined(llm, outcomes.get(llm.name, []))
        for llm in sorted(problem.llms, key=lambda llm: llm.name)
    }
    return summed(models, placement.gpus_used)


def summed(models: Mapping[ModelName, MemberEstimate], gpus: int) -> Prediction:
    """Goodput, worst ratio and attainment over all LLMs."""
    return Prediction(
        goodput=sum(min(found.served, found.offered) for found in models.values()),
        worst_ratio=min((found.ratio for found in models.values()), default=1.0),
        gpus_used=gpus,
        attainment=_attainment(list(models.values())),
        models=models,
    )


def _outcomes(
    unit: Unit, kind: GroupKind, llms: Mapping[ModelName, Llm], estimator: UnitForecast
) -> list[tuple[ModelName, tuple[float, MemberOutcome]]]:
    members = [member for member in unit.members if member.model in llms]
    asks = [
        Ask(
            llm=_as_held(llms[member.model], member),
            rate=max(member.rate, 1e-3),
            share=member.share,
        )
        for member in members
    ]
    if not asks:
        return []
    found = estimator.outcome(kind, asks).members
    return [
        (member.model, (member.rate, outcome))
        for member, outcome in zip(members, found, strict=True)
    ]


def _as_held(llm: Llm, member: Member) -> Llm:
    """The LLM with no more KV of its own than the placement gives it.

    A request raised beyond what its running unit has is not granted; it takes nothing from others.
    """
    if llm.sharing.kv_request <= member.kv.guaranteed:
        return llm
    return replace(llm, sharing=replace(llm.sharing, kv_request=member.kv.guaranteed))


def _combined(llm: Llm, parts: Sequence[tuple[float, MemberOutcome]]) -> MemberEstimate:
    """Replicas together: rates add up, latencies are weighted by rate, p99 is the worst."""
    served = sum(min(outcome.served, rate) for rate, outcome in parts)
    # A sum of parts differs from the whole in the last bits; that is not unmet demand.
    if abs(served - llm.demand.rate) < 1e-9 * max(1.0, llm.demand.rate):
        served = llm.demand.rate
    return MemberEstimate(
        offered=llm.demand.rate,
        served=served,
        replicas=len(parts),
        ttft_mean_s=_weighted([(rate, part.ttft_mean_s) for rate, part in parts]),
        ttft_p99_s=_worst([part.ttft_p99_s for _, part in parts]),
        tpot_mean_s=_weighted([(rate, part.tpot_mean_s) for rate, part in parts]),
        tpot_p99_s=_worst([part.tpot_p99_s for _, part in parts]),
        attainment=_share_met(llm, parts),
        kv_bytes=_total([part.held for _, part in parts]),
    )


def _total(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _share_met(llm: Llm, parts: Sequence[tuple[float, MemberOutcome]]) -> float | None:
    """Share of all arrivals within the SLO; what is not served misses it."""
    if llm.slo is None:
        return None
    met = sum(
        min(outcome.served, rate) * (1.0 if outcome.attainment is None else outcome.attainment)
        for rate, outcome in parts
    )
    return min(1.0, met / llm.demand.rate) if llm.demand.rate > 0 else 1.0


def _attainment(models: Sequence[MemberEstimate]) -> float | None:
    judged = [(found.offered, found.attainment) for found in models if found.attainment is not None]
    return _weighted(judged)


def _weighted(values: Sequence[tuple[float, float | None]]) -> float | None:
    known = [(weight, value) for weight, value in values if value is not None]
    total = sum(weight for weight, _ in known)
    if not known:
        return None
    if total <= 0:
        return max(value for _, value in known)
    return sum(weight * value for weight, value in known) / total


def _worst(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
