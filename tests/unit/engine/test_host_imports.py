"""An engine host imports torch, numpy, the standard library and our own values; nothing else."""

import subprocess
import sys

FOREIGN = {"transformers", "tokenizers", "aiohttp", "grpc", "google", "msgspec", "kopf",
           "kubernetes", "prometheus_client", "jinja2", "yaml", "scipy", "mux_operator",
           "mux_cli"}  # fmt: skip


def imported(module: str) -> set[str]:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    return set(done.stdout.split())


def test_an_open_host_imports_nothing_foreign() -> None:
    assert imported("mux_runtime.engines.torch.engine") & FOREIGN == set()


def test_hello_comes_before_torch() -> None:
    assert imported("mux_runtime.engines.torch.__main__") & (FOREIGN | {"torch", "numpy"}) == set()


def test_inspect_needs_the_standard_library_alone() -> None:
    assert imported("mux_runtime.inspect") & (FOREIGN | {"torch", "numpy", "safetensors"}) == set()
