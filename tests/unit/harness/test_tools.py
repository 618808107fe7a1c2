"""Where the tools lie and what is said when they are missing."""

from pathlib import Path

import pytest

from harness import tools


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("K8S_BIN", raising=False)
    monkeypatch.setenv("MUXSERVE_TOOLS", str(tmp_path))


def test_the_folder_is_named_after_the_pins(tmp_path: Path) -> None:
    assert tools.folder() == tmp_path / tools.fingerprint()


def test_a_changed_pin_changes_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = tools.fingerprint()
    for tool_set in tools.TOOL_SETS:
        (tmp_path / tool_set.module).mkdir()
        for name in ("go.mod", "go.sum"):
            content = (tools.MODULES / tool_set.module / name).read_bytes()
            (tmp_path / tool_set.module / name).write_bytes(content)
    monkeypatch.setattr(tools, "MODULES", tmp_path)
    assert tools.fingerprint() == before
    (tmp_path / "helm" / "go.mod").write_text("module other\n")
    assert tools.fingerprint() != before


def test_a_missing_tool_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(tools.ToolError, match="make tools"):
        tools.require("kube-apiserver")


def test_given_binaries_are_used_and_never_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kubectl").touch()
    monkeypatch.setenv("K8S_BIN", str(tmp_path))
    assert tools.require("kubectl") == tmp_path / "kubectl"
    with pytest.raises(tools.ToolError, match="lacks etcd"):
        tools.build()


def test_a_machine_without_go_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(tools.ToolError, match="`go` on PATH"):
        tools.build()
