"""Token-block shares as caps on sequences, and how they move."""

from dataclasses import replace
from typing import Any

import pytest

from adbs_builders import member
from mux_core.adbs import UnitLoad
from mux_core.simulator.policies.sequence_caps import (
    ADAPT_EVERY_S,
    SequenceCaps,
    Share,
    first_shares,
)
from policy_toy import Tenant, setting_of

STARVING = (
    Tenant("llm-0", "llama-7b", 2.14, 80, 30),
    Tenant("llm-1", "llama-13b", 1.65, 90, 30),
    Tenant("llm-2", "llama-30b", 1.56, 100, 30),
    Tenant("llm-3", "llama-30b", 1.48, 100, 30),
)


def caps_of(*names: str, cap: int = 20, **changes: Any) -> SequenceCaps:
    shares = {name: Share(head_blocks=cap * 10, per_sequence=10) for name in names}
    return SequenceCaps(shares=shares, **changes)


def adapted(caps: SequenceCaps, **members: Any) -> dict[str, int]:
    """Caps after one adaptation; members by name as changes of a load."""
    load = UnitLoad(members=tuple(member(n, **c) for n, c in members.items()), free_units=0)
    caps.refresh(load, 0.0)
    caps.refresh(load, ADAPT_EVERY_S)
    return {name: caps.cap(name) for name in members}


def test_the_published_unit_gets_the_published_caps():
    caps = SequenceCaps(shares=first_shares(setting_of(STARVING)))
    assert [caps.cap("llm-2"), caps.cap("llm-3")] == [18, 17]


def test_equal_shares_are_equal_in_token_blocks_whatever_the_rates():
    caps = SequenceCaps(shares=first_shares(setting_of(STARVING), equal=True))
    assert len({caps.cap(t.name) for t in STARVING}) == 1


def test_rows_of_64_tokens_give_the_caps_of_twice_as_many_rows_of_32():
    setting = setting_of(STARVING)
    double = replace(
        setting,
        row_units={model: 2 * units for model, units in setting.row_units.items()},
        block_tokens=dict.fromkeys(setting.block_tokens, 64),
    )
    for wide, narrow in zip(
        first_shares(double).values(), first_shares(setting).values(), strict=True
    ):
        assert wide.cap == narrow.cap


def test_who_leaves_its_share_idle_gives_to_who_fills_it_and_has_a_queue():
    caps = caps_of("busy", "idle")
    for _ in range(10):
        caps.note_step("busy", 20)
        caps.note_step("idle", 2)
    found = adapted(caps, busy={"waiting": 5, "running": 20}, idle={"running": 2})
    # A tenth of its mean batch more for the one, out of the 17 the other does not use.
    assert found == {"busy": 22, "idle": 18}


def test_growth_is_never_more_than_the_backlog():
    caps = caps_of("busy", "idle")
    caps.note_step("busy", 20)
    caps.note_step("idle", 2)
    found = adapted(caps, busy={"waiting": 1, "running": 22}, idle={})
    assert found == {"busy": 21, "idle": 19}


@pytest.mark.parametrize(
    ("batch", "waiting", "running"),
    [(20, 0, 30), (20, 1, 15), (10, 5, 20)],
    ids=["no queue", "queue below a tenth", "batch below nine tenths"],
)
def test_nobody_grows_without_need(batch: int, waiting: int, running: int):
    caps = caps_of("busy", "idle")
    caps.note_step("busy", batch)
    caps.note_step("idle", 2)
    found = adapted(caps, busy={"waiting": waiting, "running": running}, idle={})
    assert found == {"busy": 20, "idle": 20}


def test_fractions_of_sequences_go_to_the_longest_queue():
    caps = SequenceCaps(
        shares={
            "a": Share(head_blocks=206, per_sequence=10),
            "b": Share(head_blocks=206, per_sequence=10),
        }
    )
    assert adapted(caps, a={"waiting": 1}, b={"waiting": 3}) == {"a": 20, "b": 21}


def test_shares_stay_where_adaptation_is_off_or_not_due():
    for caps, later in ((caps_of("a", "b", adapts=False), 100.0), (caps_of("a", "b"), 7.9)):
        caps.note_step("a", 20)
        caps.note_step("b", 1)
        load = UnitLoad(members=(member("a", waiting=9, running=20), member("b")), free_units=0)
        caps.refresh(load, 0.0)
        caps.refresh(load, later)
        assert [caps.cap("a"), caps.cap("b")] == [20, 20]
