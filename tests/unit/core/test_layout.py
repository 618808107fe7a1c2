"""The top-level folders must not hide modules of the standard library."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_no_top_level_folder_hides_a_standard_module() -> None:
    hiding = [
        path.name
        for path in ROOT.iterdir()
        if path.stem in sys.stdlib_module_names
        and (path.suffix == ".py" or (path / "__init__.py").exists())
    ]
    assert hiding == []
