"""The calendar engine does, step for step, what the torch engine's plan does request by request."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mux_core.engine import Grant, KVGeometry, Phase, Sampling
from mux_core.simulator.engine import Engine, Sequence
from mux_runtime.engines.torch import requests as torch_requests

BLOCK = 4
GEOMETRY = KVGeometry(layers=1, kv_heads=1, head_dim=1, dtype="float32", block_tokens=BLOCK,
                      run_units=2)  # fmt: skip
PHASES = st.sampled_from([frozenset(Phase), frozenset({Phase.DECODE}), frozenset({Phase.PREFILL}),
                          frozenset()])  # fmt: skip


@dataclass
class Plain:
    """Requests one by one, planned by the torch engine's own `plan_step`."""

    requests: dict[int, torch_requests.Request] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)

    def add(self, order: int, prompt: int, output: int) -> None:
        self.outputs[order] = output
        self.requests[order] = torch_requests.Request(
            rid=str(order), tokens=[0] * prompt, prompt_len=prompt,
            sampling=Sampling(max_tokens=output), detach=False, phase=Phase.PREFILL,
        )  # fmt: skip

    def step(self, grant: Grant) -> tuple[int, int, int, bool, set[int]]:
        plan = torch_requests.plan_step(self.requests.values(), grant, GEOMETRY)
        prefill, decode = plan.tokens(Phase.PREFILL), plan.tokens(Phase.DECODE)
        used, done = 0, set()
        for chunk in plan.chunks:
            request, emits = chunk.request, chunk.emits
            request.rows += [(0,)] * chunk.rows
            request.computed += chunk.tokens
            used += chunk.rows
            if emits:
                request.tokens.append(0)
                request.phase = Phase.DECODE
                if len(request.output) >= self.outputs[int(request.rid)]:
                    done.add(int(request.rid))
        for order in done:
            del self.requests[order]
        return prefill, decode, used, plan.starved, done

    @property
    def owned(self) -> int:
        return sum(len(request.rows) for request in self.requests.values())

    @property
    def needed(self) -> int:
        return torch_requests.rows_needed(self.requests.values(), GEOMETRY)


STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(1, 14), st.integers(1, 9)), max_size=2),  # new requests
        PHASES, st.integers(0, 12), st.integers(0, 5), st.integers(0, 6),
        st.none() | st.integers(0, 7),  # which one is taken away
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_the_calendar_does_what_the_plan_does(steps: list[tuple]) -> None:
    plain, engine = Plain(), Engine[Sequence](BLOCK)
    known: dict[int, Sequence] = {}
    for number, (fresh, phases, budget, seats, rows, taken) in enumerate(steps, start=1):
        for prompt, output in fresh:
            order = len(known)
            known[order] = Sequence(order=order, prompt=prompt, output=output, length=prompt)
            engine.add(known[order])
            plain.add(order, prompt, output)
        if taken is not None and taken in plain.requests:
            gone = plain.requests.pop(taken)
            assert engine.remove(known[taken]) == len(gone.rows)
            assert (known[taken].length, known[taken].computed) == (len(gone.tokens), gone.computed)
        lease = tuple((index,) for index in range(rows))
        wanted = plain.step(Grant(step=number, phases=phases, token_budget=budget, max_seqs=seats,
                                  lease=lease))  # fmt: skip
        done = engine.step(rows=rows, budget=budget, seats=seats, phases=phases)
        finished = {request.order for request in done.finished}
        assert len(finished) == len(done.finished)
        assert (done.prefill_tokens, done.decoded, done.used, done.starved, finished) == wanted
        for request in done.finished:
            engine.remove(request)
        assert (engine.rows, engine.rows_needed) == (plain.owned, plain.needed)
        for order, request in plain.requests.items():
            assert engine.length_of(known[order]) == len(request.tokens)
            assert engine.rows_of(known[order]) == len(request.rows)
        decoding = [len(r.tokens) for r in plain.requests.values() if r.phase is Phase.DECODE]
        assert engine.context == sum(decoding)


def test_lengths_are_current_when_asked_for() -> None:
    engine = Engine[Sequence](BLOCK)
    request = Sequence(order=0, prompt=3, output=9, length=3)
    engine.add(request)
    for _ in range(4):
        engine.step(rows=9, budget=99, seats=9)
    assert engine.length_of(request) == 7
    engine.refresh()
    assert (request.length, engine.length_of(request)) == (7, 7)
    engine.step(rows=9, budget=99, seats=9)
    assert engine.length_of(request) == 8


def test_decodes_go_in_the_order_in_which_requests_came() -> None:
    engine = Engine[Sequence](BLOCK)
    late = Sequence(order=0, prompt=8, output=9, length=8)
    early = Sequence(order=1, prompt=3, output=9, length=3, computed=2)
    engine.add(late)
    engine.add(early)
    assert engine.step(rows=0, budget=99, seats=9).emitted == [early]
    assert engine.step(rows=9, budget=99, seats=9).emitted == [late]
    assert engine.step(rows=9, budget=99, seats=1).held == [early]


@pytest.mark.parametrize("coming_back", range(8))
def test_an_end_from_a_former_stay_is_void(coming_back: int) -> None:
    """Taken away and back, a request ends once, whenever it comes."""
    engine = Engine[Sequence](BLOCK)
    request = Sequence(order=0, prompt=3, output=9, length=3)
    other = Sequence(order=1, prompt=1, output=99, length=1)
    engine.add(request)
    engine.add(other)
    finished = []
    for step in range(40):
        if step == 3:
            engine.remove(request)
            request.computed = 0
        if step == 3 + coming_back:
            engine.add(request)
        done = engine.step(rows=9, budget=99, seats=9)
        finished += done.finished
        for gone in done.finished:
            engine.remove(gone)
    assert finished == [request]
    assert request.length == 3 + 9
