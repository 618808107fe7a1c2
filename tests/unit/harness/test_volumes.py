"""Files of a volume appear and change all at once."""

import os
from pathlib import Path

from harness.kubelet.volumes import publish


def shown(place: Path) -> dict[str, str]:
    names = (path for path in place.iterdir() if not path.name.startswith(".."))
    return {path.name: path.read_text() for path in names}


def test_files_are_shown_through_one_link(tmp_path: Path) -> None:
    publish(tmp_path, {"a": b"1", "b": b"2"}, "..0")
    assert shown(tmp_path) == {"a": "1", "b": "2"}
    assert os.readlink(tmp_path / "a") == "..data/a"
    assert os.readlink(tmp_path / "..data") == "..0"


def test_a_change_swaps_the_link_and_removes_the_old_set(tmp_path: Path) -> None:
    publish(tmp_path, {"a": b"1", "b": b"2"}, "..0")
    publish(tmp_path, {"a": b"3", "c": b"4"}, "..1")
    assert shown(tmp_path) == {"a": "3", "c": "4"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["..1", "..data", "a", "c"]


def test_the_same_content_changes_nothing(tmp_path: Path) -> None:
    publish(tmp_path, {"deep/a": b"1"}, "..0")
    publish(tmp_path, {"deep/a": b"1"}, "..1")
    assert os.readlink(tmp_path / "..data") == "..0"
    assert (tmp_path / "deep" / "a").read_text() == "1"
