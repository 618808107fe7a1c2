"""Values a container is given, without a cluster."""

from decimal import Decimal

import pytest

from harness.api import Object
from harness.kubelet import environment
from harness.kubelet.inputs import NotYetError, quantity


@pytest.mark.parametrize(
    ("text", "amount"),
    [("8", 8), ("500m", Decimal("0.5")), ("2k", 2000), ("1.5Gi", 3 * 2**29), ("1T", 10**12)],
)
def test_a_quantity_is_a_number(text: str, amount: Decimal) -> None:
    assert quantity(text) == amount


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(ValueError, match="'5x'"):
        quantity("5x")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("--at=$(HOST):80", "--at=10.0.0.1:80"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(HOST)", "$(HOST)"),
        ("$HOST", "$HOST"),
    ],
    ids=["a name is replaced", "an unknown name stays", "a doubled dollar escapes", "bare"],
)
def test_references_are_expanded(text: str, expanded: str) -> None:
    assert environment.expand(text, {"HOST": "10.0.0.1"}) == expanded


IMAGES = {"registry:5000/muxserve": ("muxserve",)}


@pytest.mark.parametrize(
    ("container", "argv"),
    [
        ({"command": ["a"], "args": ["b"], "image": "registry:5000/muxserve"}, ["a", "b"]),
        ({"args": ["serve"], "image": "registry:5000/muxserve:1.2"}, ["muxserve", "serve"]),
        ({"image": "registry:5000/muxserve@sha256:00"}, ["muxserve"]),
    ],
    ids=["a command replaces the entry point", "a tag is ignored", "a digest is ignored"],
)
def test_the_command_line(container: Object, argv: list[str]) -> None:
    assert environment.command({"name": "main", **container}, {}, IMAGES) == argv


def test_an_unknown_image_without_a_command_cannot_run() -> None:
    with pytest.raises(NotYetError, match="main has no command"):
        environment.command({"name": "main", "image": "other"}, {}, IMAGES)
