"""The documents that cross process borders: unit spec and route table."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_core import routes, unitspec
from mux_core.errors import SpecError
from mux_core.routes import Endpoint, Route, RouteTable
from mux_core.unitspec import Device, MemberSpec, UnitSpec

NAMES = st.text("abcdefghijk-", min_size=1, max_size=8)
MEMBERS = st.builds(
    MemberSpec,
    model=NAMES,
    served_name=NAMES,
    path=st.just("/models/x"),
    max_model_len=st.none() | st.integers(1, 4096),
    rate=st.floats(0, 100),
    slo_ttft_s=st.none() | st.floats(0.01, 10),
)


def spec(*members: MemberSpec) -> UnitSpec:
    return UnitSpec(
        unit="pool-r1-u0",
        pool="pool",
        namespace="default",
        generation=1,
        incarnation=1,
        device=Device.CPU,
        gpus=1,
        memory_bytes=1 << 30,
        members=members,
    )


def document(**changes: object) -> str:
    return json.dumps({**json.loads(unitspec.to_json(spec())), **changes})


@given(st.lists(MEMBERS, max_size=4, unique_by=(lambda m: m.model, lambda m: m.served_name)))
def test_a_unit_spec_survives_the_wire(members: list[MemberSpec]) -> None:
    made = spec(*members)
    assert unitspec.from_json(unitspec.to_json(made)) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "not JSON", id="not json"),
        pytest.param("[]", "must be an object", id="not an object"),
        pytest.param(document(colour="red"), "unknown field 'colour'", id="unknown field"),
        pytest.param(document(gpus="1"), "gpus is '1'; must be int", id="wrong type"),
        pytest.param(document(gpus=True), "gpus is True", id="a boolean is no number"),
        pytest.param(document(device="TPU"), "use CPU or CUDA", id="unknown device"),
        pytest.param(document(version=2), "version 2, this runtime reads 1", id="other version"),
        pytest.param(document(members={}), "members must be a list", id="members no list"),
        pytest.param(document(memory_bytes=0), "start at 1", id="no memory"),
        pytest.param(
            document(members=[{"model": "a", "path": "/x"}]),
            r"members\[0\]: field 'served_name' is missing",
            id="missing field of a member",
        ),
    ],
)
def test_a_wrong_unit_spec_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        unitspec.from_json(text)


def test_two_members_with_one_served_name_are_refused() -> None:
    a, b = (MemberSpec(model=name, served_name="same", path="/x") for name in "ab")
    with pytest.raises(SpecError, match="served name 'same' given twice"):
        spec(a, b)


def test_a_route_table_survives_the_wire() -> None:
    endpoint = Endpoint(unit="u0", host="10.0.0.1", port=8001)
    table = RouteTable(
        namespace="default",
        generation=3,
        routes=(
            Route(model="a", served_name="a", endpoints=(endpoint,)),
            Route(model="b", served_name="b"),
        ),
    )
    assert routes.from_json(routes.to_json(table)) == table
    assert [route.serving for route in table.routes] == [True, False]


@pytest.mark.parametrize("text", ["{", "[]", '{"namespace": "x", "colour": 1}', "{}"])
def test_what_is_no_route_table_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="route table"):
        routes.from_json(text)
