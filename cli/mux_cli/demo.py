"""`make demo`: three tiny models on this machine's CPU, behind one endpoint.

Makes the models (random weights: what they say is noise, how they are served is real), writes
their manifests, runs `muxserve up` on them as anybody would, sends a few chats to all three at
once, and says what happened. Leaves the server running; `--exit` ends it.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mux_cli.demo_chats import run_chats
from mux_cli.demo_files import DEMO_MEMORY, write_manifests
from mux_cli.demo_report import block_bytes, print_closing, print_outcome

FOLDER = Path(".demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; the exit code is the server's when that ends early."""
    args = _arguments(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print("[bold]Three tiny models, one CPU slot, one endpoint[/bold]")
    manifests = _make_files(args.folder, console)
    return asyncio.run(_demo(args, manifests, console))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--exit", action="store_true", help="end the server after the report")
    parser.add_argument("--port", type=int, default=8000, help="port of the endpoint; 0 draws one")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where models and state go")
    return parser.parse_args(argv)


def _make_files(folder: Path, console: Console) -> Path:
    """The folder of manifests; models are made once."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers draws bars for each tiny file
    from mux_cli.tiny_models import write_demo

    with console.status("making the models (random weights, own tokenizers)"):
        models = write_demo((folder / "models").resolve())
    for name, path in models.items():
        size = sum(file.stat().st_size for file in path.iterdir()) / (1 << 20)
        console.print(f"  {name}: {path} ({size:.1f} MiB)", soft_wrap=True)
    manifests = write_manifests(folder / "manifests", models)
    console.print(f"  manifests: {manifests} (3 LLMDeployments, 1 GPUPool of {DEMO_MEMORY})",
                  soft_wrap=True)  # fmt: skip
    return manifests


async def _demo(args: argparse.Namespace, manifests: Path, console: Console) -> int:
    data = (args.folder / "state").resolve()
    command = [sys.executable, "-m", "mux_cli.main", "up", "-f", str(manifests),
               "--port", str(args.port), "--data-dir", str(data)]  # fmt: skip
    console.print(f"\n$ muxserve {' '.join(command[3:])}", style="bold", soft_wrap=True)
    server = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stderr is not None
    told = asyncio.create_task(_relay(server.stderr, console))
    stopping = _ends_on_signal(server)
    try:
        url = await _ready(server.stdout)
        if url is None:
            return await server.wait()
        console.print(f"[bold green]ready {url}[/bold green]\n")
        chats = await run_chats(url, data, console)
        blocks = {path.name: block_bytes(path) for path in (args.folder / "models").iterdir()}
        print_outcome(chats, blocks, console)
        print_closing(url, next(iter(chats.chats)).model, leaving=not args.exit, console=console)
        if not args.exit:
            await stopping.wait()
        return 0 if all(chat.ok for chat in chats.chats) else 1
    finally:
        if server.returncode is None:
            server.terminate()
            await server.wait()
        await told


async def _ready(stdout: asyncio.StreamReader) -> str | None:
    """The URL of the line `ready URL`; None when the server ended without one."""
    async for raw in stdout:
        word, _, url = raw.decode().strip().partition(" ")
        if word == "ready":
            return url
    return None


async def _relay(stderr: asyncio.StreamReader, console: Console) -> None:
    async for raw in stderr:
        console.print("  " + raw.decode(errors="replace").rstrip(), style="dim", markup=False,
                      soft_wrap=True)  # fmt: skip


def _ends_on_signal(server: asyncio.subprocess.Process) -> asyncio.Event:
    """Ctrl-C and SIGTERM end the server; the event is set then, or when it ended by itself."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told() -> None:
        event.set()
        if server.returncode is None:
            server.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)
    waiting = loop.create_task(server.wait())
    waiting.add_done_callback(lambda _: event.set())
    return event


if __name__ == "__main__":
    sys.exit(main())
