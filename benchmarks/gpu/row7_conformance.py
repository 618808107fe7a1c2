"""Row 7: the engine conformance suite on the GPU: the very tokens of transformers, in float32.

    python3 benchmarks/gpu/row7_conformance.py

About 4 minutes. Needs pytest, hypothesis and transformers, and no other package. Decides whether
the engine's CUDA path is right. `--device cpu` runs the same suite's CPU back-end.
"""

import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from record import ROOT, Recorder, arguments, run

SUITE = ROOT / "tests" / "integration" / "test_engine_conformance.py"
INI = Path(__file__).with_name("pytest.ini")


def outcomes(report: Path) -> list[tuple[str, str, str]]:
    """(test, passed|failed|skipped, why) of a JUnit report."""
    found = []
    for case in ET.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        worst = next((case.find(kind) for kind in ("failure", "error", "skipped")
                      if case.find(kind) is not None), None)  # fmt: skip
        if worst is None:
            found.append((name, "passed", ""))
        else:
            kind = "skipped" if worst.tag == "skipped" else "failed"
            found.append((name, kind, (worst.get("message") or "")[:2000]))
    return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], seconds=420)
    parser.add_argument("--select", default="", help="pytest -k expression to narrow it down")
    args = parser.parse_args()
    backend = f"torch-{args.device}"
    chosen = f"{backend} and ({args.select})" if args.select else backend
    with Recorder(7, "conformance", args) as record, tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code, text = run(
            [sys.executable, "-m", "pytest", "-q", "-c", str(INI), "--rootdir", str(ROOT),
             "--noconftest", "-k", chosen, "--junitxml", str(report), str(SUITE)],
            timeout_s=args.seconds, cwd=ROOT,
        )  # fmt: skip
        record.fact("pytest", text[-4000:], code=code)
        results = outcomes(report) if report.exists() else []
        for name, outcome, why in results:
            if outcome != "passed":
                record.fact(outcome, why, test=name)
        counts = {kind: sum(outcome == kind for _, outcome, _ in results)
                  for kind in ("passed", "failed", "skipped")}  # fmt: skip
        record.fact("counts", counts)
        record.shows(f"back-end {backend}: {counts['passed']} passed, {counts['failed']} failed, "
                     f"{counts['skipped']} skipped")  # fmt: skip


if __name__ == "__main__":
    main()
