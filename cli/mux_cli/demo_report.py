"""What the demo did, as a table; and how to go on by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mux_cli.demo_chats import Chat, Seen
from mux_core.checkpoint import read_geometry
from mux_core.engine import kv_geometry
from mux_core.units import format_bytes
from mux_core.unitspec import UNIT_BYTES

COLUMNS: Final = ("model", "unit", "SM share p/d", "KV planned", "KV peak", "in blocks of",
                  "tokens", "TTFT")  # fmt: skip


def block_bytes(checkpoint: Path) -> int:
    """What one KV block of the model takes: a row of head units over all its layers."""
    shape = read_geometry(json.loads((checkpoint / "config.json").read_text()))
    kv = kv_geometry(layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
                     dtype=shape.dtype, unit_bytes=UNIT_BYTES)  # fmt: skip
    return kv.row_units * UNIT_BYTES


def print_outcome(seen: Seen, blocks: Mapping[str, int], console: Console) -> None:
    """Placement, tokens, TTFT and KV per model, and the unit's account of its memory."""
    table = Table(title="What happened", title_justify="left", title_style="bold", box=None,
                  pad_edge=False, header_style="bold")  # fmt: skip
    for name in COLUMNS:
        left = name in ("model", "unit")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for model in seen.status["models"]:
        table.add_row(*_row(model, seen, blocks[model["name"]]))
    console.print("\n")
    console.print(table)
    tokens = sum(chat.tokens for chat in seen.chats)
    console.print(f"\n{tokens} tokens of {len(seen.chats)} chats in {seen.seconds:.1f} s, all in "
                  "one unit: one process tree, one KV pool, one scheduler.")  # fmt: skip
    if seen.unit_kv:
        parts = ", ".join(f"{kind} {format_bytes(v)}" for kind, v in sorted(seen.unit_kv.items()))
        console.print(f"KV of the unit afterwards: {parts}")


def print_closing(url: str, model: str, *, leaving: bool, console: Console) -> None:
    if not leaving:
        console.print("\nThe demo is over; its server drains and ends.")
        return
    console.print(f"\n[bold]The server keeps running at {url}[/bold]; Ctrl-C drains and ends it.")
    console.print("Try it:")
    body = '{"model": "' + model + '", "messages": [{"role": "user", "content": "hello"}], '
    body += '"max_tokens": 32, "stream": true}'
    print(f"  curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
          flush=True)  # fmt: skip


def _row(model: dict[str, Any], seen: Seen, block: int) -> tuple[str, ...]:
    chats = [chat for chat in seen.chats if chat.model == model["served_name"]]
    placement = next(iter(model["placements"]), None)
    planned = format_bytes(placement["kv_bytes"]) if placement else "-"
    shares = (
        f"{placement['prefill_percent']} / {placement['decode_percent']} %" if placement else "-"
    )
    return (
        model["served_name"], model["unit"] or "-", shares, planned,
        f"{seen.kv_peak.get(model['name'], 0) // block} blocks", format_bytes(block),
        str(sum(chat.tokens for chat in chats)), _ttft(chats),
    )  # fmt: skip


def _ttft(chats: list[Chat]) -> str:
    times = sorted(chat.ttft_s for chat in chats if chat.ttft_s is not None)
    return f"{times[0] * 1000:.0f} to {times[-1] * 1000:.0f} ms" if times else "-"
