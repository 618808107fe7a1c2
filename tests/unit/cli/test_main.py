"""The command's table: help lists all, and only what is asked for is imported."""

import subprocess
import sys
from importlib import import_module

import pytest

from mux_cli import main as command


def test_without_a_command_it_prints_help_and_answers_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == command.WRONG_INPUT
    out = capsys.readouterr().out
    assert all(name in out for name in command.SUBCOMMANDS)


def test_an_unknown_command_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["fly"])
    assert stopped.value.code == 2
    assert "fly" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("muxserve ")


@pytest.mark.parametrize("name", sorted(command.SUBCOMMANDS))
def test_every_row_of_the_table_is_a_module_with_both_functions(name: str) -> None:
    module = import_module(command.SUBCOMMANDS[name].module)
    assert callable(module.configure)
    assert callable(module.run)


def test_help_imports_no_subcommand() -> None:
    code = (
        "import sys; from mux_cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'mux_cli.up', 'mux_operator', 'scipy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
