"""Which step times an LLM gets: measured before fitted before the data sheet."""

from dataclasses import replace

import pytest

from mux_core.costmodel.profile import profile_of
from mux_core.costmodel.profile_set import Served, Stretch
from mux_core.costmodel.sources import ProfileCatalog, Source, choose_costs
from mux_core.errors import SpecError
from mux_core.llm import Demand, Llm
from mux_core.placement import GpuNode
from mux_core.units import Bytes, ModelName, NodeName
from profile_builders import MADE, decode_s, model_profile, prefill_s, profile_set, shape

NODES = (GpuNode(name=NodeName("n"), gpus=1, memory=Bytes(1 << 30), gpu="cpu"),)


def llm(name, geometry, profile=None):
    return Llm(name=ModelName(name), weight_bytes=Bytes(1 << 20), demand=Demand(rate=1),
               geometry=geometry, profile=profile)  # fmt: skip


def rows(table):
    return [row for cell in table.cells.values() for row in cell]


def test_each_llm_gets_the_best_there_is_and_says_which():
    catalog = ProfileCatalog((profile_set(),))
    llms = [
        llm("known", shape()),
        llm("unknown", shape(layers=7)),
        llm("shipped", None, "llama-7b"),
    ]
    costs = choose_costs(llms, NODES, catalog, {})
    assert costs.sources == {"known": Source.MEASURED, "unknown": Source.FITTED,
                             "shipped": Source.SHIPPED}  # fmt: skip
    without = choose_costs(llms[:1], NODES, None, {})
    assert without.sources == {"known": Source.DATA_SHEET}
    assert without.llms[0].profile is None


def test_measured_times_hold_what_a_unit_adds_to_a_step():
    costs = choose_costs([llm("known", shape())], NODES, ProfileCatalog((profile_set(),)), {})
    profile = profile_of(costs.llms[0], "cpu", costs.tables)
    for batch in (1, 16):
        found = profile.decode_s(tensor=1, percent=50, batch=batch, context=64)
        assert found == pytest.approx(decode_s(batch, 64) + 5e-4 + 1e-4 * batch)
    found = profile.prefill_s(tensor=1, percent=100, batch=4, tokens=256)
    assert found == pytest.approx(prefill_s(4, 256) + 5e-4 + 4e-4)


def test_steps_take_as_long_as_a_unit_showed():
    measured = model_profile("a", shape())
    served = Served(decode=((1.0, 2.0), (4.0, 1.5)), prefill=Stretch(times=2.0))
    profiles = profile_set(replace(measured, served=served), model_profile("b", shape(layers=2)))
    table = ProfileCatalog((profiles,)).table
    # The second was not served, so it takes after the first; and so does one that has a fit alone.
    for geometry in (shape(), shape(layers=2), shape(layers=7)):
        bench = ProfileCatalog((replace(profiles, unit=None),)).table(geometry)[1]
        for alone, seen in zip(rows(bench), rows(table(geometry)[1]), strict=True):
            added = 5e-4 + 1e-4 * alone.batch
            if alone.decode_s is not None:
                times = 2.0 if alone.batch == 1 else 1.5
                assert seen.decode_s == pytest.approx(times * alone.decode_s + added)
            if alone.prefill_s is not None:
                assert seen.prefill_s == pytest.approx(2.0 * alone.prefill_s + added)


def test_pairs_slow_nothing_whose_steps_were_timed_in_company():
    plain = profile_set()
    beside = ProfileCatalog((plain,)).interference
    assert beside.prefill_factor(decoding=True) == pytest.approx(1.1)
    for together, factor in ((False, 1.1), (True, 1.0)):
        served = replace(plain.models[0], served=Served(together=together))
        found = ProfileCatalog((replace(plain, models=(served, plain.models[1])),)).interference
        assert found.prefill_factor(decoding=True) == pytest.approx(factor)


def test_costs_read_alike_for_any_name_and_do_not_touch_the_llm_otherwise():
    given = llm("known", shape())
    costs = choose_costs([given], NODES, ProfileCatalog((profile_set(),)), {})
    assert replace(costs.llms[0], profile=None) == given


def test_profiles_of_another_kind_of_gpu_are_refused():
    nodes = (replace(NODES[0], gpu="h100-80gb"),)
    with pytest.raises(SpecError, match="measured on cpu, the nodes have h100-80gb"):
        choose_costs([llm("known", shape())], nodes, ProfileCatalog((profile_set(),)), {})


def test_profiles_of_two_machines_are_not_mixed():
    other = profile_set(made=replace(MADE, device="another, 8 cores"))
    with pytest.raises(SpecError, match="different devices"):
        ProfileCatalog((profile_set(), other))
