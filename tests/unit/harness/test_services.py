"""What the service proxy listens on, forwards to, and answers by DNS."""

import struct

import pytest

from harness import names
from harness.api import Object
from harness.service_proxy import Port, Table


def service(named: str, address: str, **port: object) -> Object:
    ports = [{"port": 80, **port}]
    metadata = {"name": named, "namespace": "shop", "uid": named}
    return {"metadata": metadata, "spec": {"clusterIP": address, "ports": ports}}


def endpoints(name: str, *addresses: str, ready: bool = True, port: str = "") -> Object:
    labels = {"kubernetes.io/service-name": name}
    return {
        "metadata": {"namespace": "shop", "labels": labels},
        "ports": [{"port": 8080, "name": port}],
        "endpoints": [{"addresses": list(addresses), "conditions": {"ready": ready}}],
    }


def table(*services: Object, **slices: Object) -> Table:
    return Table(6443, {item["metadata"]["name"]: item for item in services}, dict(slices))


def test_every_tcp_port_with_an_address_is_listened_on() -> None:
    found = table(
        service("web", "10.96.0.7", name="http"),
        service("headless", "None"),
        service("names", "10.96.0.8", protocol="UDP"),
    ).listeners()
    assert found == {("10.96.0.7", 80): Port(service=("shop", "web"), name="http")}


def test_only_ready_endpoints_of_the_named_port_are_backends() -> None:
    slices = {
        "a": endpoints("web", "10.0.0.2", "10.0.0.1", port="http"),
        "b": endpoints("web", "10.0.0.3", ready=False, port="http"),
        "c": endpoints("web", "10.0.0.4", port="admin"),
        "d": endpoints("other", "10.0.0.5", port="http"),
    }
    found = table(**slices).backends(Port(service=("shop", "web"), name="http"))
    assert found == [("10.0.0.1", 8080), ("10.0.0.2", 8080)]


def test_the_kubernetes_service_is_the_api_server() -> None:
    port = Port(service=("default", "kubernetes"), name="https")
    assert table().backends(port) == [("127.0.0.1", 6443)]


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("web.shop.svc.cluster.local", ["10.96.0.7"]),
        ("headless.shop.svc.cluster.local", ["10.0.0.1", "10.0.0.2"]),
        ("web.other.svc.cluster.local", None),
        ("web.shop", None),
        ("example.org", None),
    ],
)
def test_names_of_services_have_addresses(name: str, addresses: list[str] | None) -> None:
    services = (service("web", "10.96.0.7"), service("headless", "None"))
    known = table(*services, a=endpoints("headless", "10.0.0.2", "10.0.0.1"))
    assert known.addresses(name) == addresses


def query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(word)]) + word.encode() for word in name.split("."))
    return struct.pack("!6H", 77, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!B2H", 0, kind, 1)


@pytest.mark.parametrize(
    ("name", "kind", "code", "count"),
    [("Known.x", 1, 0, 2), ("known.x", 28, 0, 0), ("unknown.x", 1, 3, 0)],
    ids=["addresses, in any case", "no IPv6 address, but the name exists", "no such name"],
)
def test_a_query_is_answered(name: str, kind: int, code: int, count: int) -> None:
    asked = query(name, kind)
    known = {"known.x": ["10.96.0.7", "10.96.0.8"]}
    reply = names.answer(asked, known.get)
    number, flags, questions, answers, *_ = struct.unpack_from("!6H", reply)
    assert (number, flags & 0x800F, questions, answers) == (77, 0x8000 | code, 1, count)
    assert reply[12 : len(asked)] == asked[12:]
    if count:
        assert reply[-4:] == bytes([10, 96, 0, 8])
