"""`python -m mux_runtime.engines.torch`: one engine host process; see `mux_runtime.engines.host`.

Says hello and describes its model before it imports torch, which takes longer than all the rest.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mux_core.engine import Phase
from mux_runtime.engines.host import Hello
from mux_runtime.engines.serving import serve
from mux_runtime.engines.torch.heap import keep_freed_memory
from mux_runtime.engines.torch.start import Settings, TorchStart


def main(argv: Sequence[str]) -> int:
    """Serves until the scheduler closes its socket; the exit code."""
    args = _parser().parse_args(argv)
    # Read by torch's libraries when they load; more threads than granted SMs would steal.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    # Hosts share the cores: a thread that spins at a barrier takes the core of the one it waits
    # for. On two busy cores a small forward pass took 278 ms spinning and 48 ms sleeping. So it
    # spins for about as long as waking up takes: where both cores are free a decode step of two
    # threads takes half as long as without, where they are not, half as long again.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # A host is ours alone: no plug-in that happens to be installed is loaded into it.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    keep_freed_memory()
    hello = Hello(host_id=args.host_id, epoch=args.epoch, pid=os.getpid(), phase=Phase(args.phase))
    settings = Settings(
        model_dir=Path(args.model_dir),
        pool=args.pool,
        arena=args.arena or args.model_dir,
        phases=frozenset({Phase(args.phase)}),
        unit_bytes=args.unit_bytes,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        device=args.device,
        threads=args.threads,
        private_kv=args.private_kv,
    )
    return serve(args.connect, hello, TorchStart(settings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mux_runtime.engines.torch", description=__doc__)
    parser.add_argument("--connect", required=True, help="the scheduler's socket")
    parser.add_argument("--host-id", required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--pool", required=True, help="the pool owner's socket")
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--phase", required=True, choices=[phase.value for phase in Phase])
    parser.add_argument("--unit-bytes", type=int, required=True)
    parser.add_argument("--arena", default="",
                        help="name of the weight arena all hosts of the model share "
                        "(default: the model folder)")  # fmt: skip
    parser.add_argument("--dtype", default="Auto", help="Auto: as the checkpoint says")
    parser.add_argument("--max-model-len", type=int, default=None)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--private-kv", action="store_true",
                        help="keep KV that no other host reads; needed on cuda")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking torch apart module by module takes seconds; the kernel frees all of it at once.
    os._exit(code)
