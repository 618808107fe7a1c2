"""Data folders go with their owner, or with the next one."""

import os
from pathlib import Path

import pytest

from harness import folders


@pytest.fixture(autouse=True)
def own_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_folder_is_gone_afterwards() -> None:
    with folders.data_folder() as folder:
        (folder / "etcd").mkdir()
    assert not folder.exists()


def test_a_folder_in_use_stays_and_an_orphan_goes(tmp_path: Path) -> None:
    orphan = tmp_path / "muxserve-cluster-orphan"
    orphan.mkdir()
    (orphan / ".owner").touch()
    with folders.data_folder() as used, folders.data_folder():
        assert used.exists()
        assert not orphan.exists()


def test_a_folder_without_a_lock_goes_when_it_is_old(tmp_path: Path) -> None:
    fresh, old = (tmp_path / f"muxserve-cluster-{name}" for name in ("fresh", "old"))
    fresh.mkdir()
    old.mkdir()
    os.utime(old, (0, 0))
    with folders.data_folder():
        assert fresh.exists()
        assert not old.exists()
