"""How a grant is filled: a table of queues and grants, without torch."""

import pytest

from mux_core.engine import Grant, KVGeometry, Phase, Sampling
from mux_core.host_rules import first_phase
from mux_runtime.engines.torch.requests import Request, plan_step, rows_needed

GEOMETRY = KVGeometry(layers=1, kv_heads=1, head_dim=8, dtype="float32", block_tokens=4,
                      run_units=2)  # fmt: skip


def request(rid: str, length: int, computed: int = 0, *, decodes: bool = False) -> Request:
    rows = [(index,) for index in range(GEOMETRY.rows_for(computed))]
    return Request(rid=rid, tokens=[0] * length, prompt_len=length, computed=computed, rows=rows,
                   sampling=Sampling(max_tokens=9), detach=False,
                   phase=Phase.DECODE if decodes else Phase.PREFILL)  # fmt: skip


def grant(budget: int, *, seqs: int = 9, rows: int = 99, phases: str = "pd") -> Grant:
    chosen = frozenset(phase for phase in Phase if phase.value[0] in phases)
    return Grant(step=1, phases=chosen, token_budget=budget, max_seqs=seqs,
                 lease=tuple((index,) for index in range(rows)))  # fmt: skip


@pytest.mark.parametrize(
    ("queue", "given", "runs", "starved"),
    [
        ("nothing", grant(9), [], False),
        ("p6 p6", grant(8), [("0", 6, 2), ("1", 2, 1)], False),
        ("p6 p6", grant(99, seqs=1), [("0", 6, 2)], False),
        ("p6 d5 p6", grant(8), [("1", 1, 0), ("0", 6, 2), ("2", 1, 1)], False),
        ("p6 d5", grant(8, phases="p"), [("0", 6, 2)], False),
        ("p6 d5", grant(8, phases="d"), [("1", 1, 0)], False),
        ("p6 d5", grant(8, phases=""), [], False),
        ("p6", grant(9, rows=0), [], True),
        ("p6", grant(9, rows=1), [("0", 4, 1)], True),
        ("p6 p3", grant(9, rows=1), [("0", 4, 1)], True),
        ("d4 d5", grant(9, rows=0), [("1", 1, 0)], True),
        ("d4 d4", grant(9, rows=1), [("0", 1, 1)], True),
        ("d4 d5 d5", grant(2), [("0", 1, 1), ("1", 1, 0)], False),
        ("c6 p2", grant(9, rows=1), [("0", 3, 1)], True),
        ("c6 p2", grant(9, rows=2), [("0", 3, 1), ("1", 2, 1)], False),
    ],
)
def test_plan(queue: str, given: Grant, runs: list[tuple[str, int, int]], starved: bool) -> None:
    """pN: a prompt of N; dN: decoding with N computed; cN: a prompt with N of 9 computed."""
    requests = []
    for index, item in enumerate(queue.split() if queue != "nothing" else []):
        size = int(item[1:])
        made = {"p": lambda n, r: request(r, n), "c": lambda n, r: request(r, 9, n),
                "d": lambda n, r: request(r, n + 1, n, decodes=True)}[item[0]]  # fmt: skip
        requests.append(made(size, str(index)))
    plan = plan_step(requests, given, GEOMETRY)
    assert [(c.request.rid, c.tokens, c.rows) for c in plan.chunks] == runs
    assert plan.starved is starved


def test_rows_needed_let_everybody_go_on() -> None:
    queue = [request("a", 9), request("b", 5, 4, decodes=True), request("c", 6, 5, decodes=True)]
    assert rows_needed(queue, GEOMETRY) == 3 + 1 + 0


@pytest.mark.parametrize(
    ("tokens", "prompt", "computed", "phase"),
    [(5, 5, 0, Phase.PREFILL), (5, 5, 4, Phase.PREFILL), (6, 5, 5, Phase.DECODE),
     (6, 5, 0, Phase.PREFILL), (6, 5, 4, Phase.PREFILL), (9, 5, 8, Phase.DECODE)],
)  # fmt: skip
def test_a_request_decodes_once_only_its_last_output_is_left(
    tokens: int, prompt: int, computed: int, phase: Phase
) -> None:
    assert first_phase(tokens, prompt, computed) is phase
