"""What the demo did, as a table; and how to go on by hand."""

from typing import Any

from rich.console import Console
from rich.table import Table

from mux_cli.demo_chats import Chat, Seen
from mux_core.units import format_bytes


def print_outcome(seen: Seen, console: Console) -> None:
    """Placement, tokens, TTFT and KV per model, and the unit's account of its memory."""
    table = Table(title="What happened", title_justify="left", title_style="bold", box=None,
                  pad_edge=False, header_style="bold")  # fmt: skip
    for name in ("model", "unit", "SM share p/d", "KV planned", "KV peak", "tokens", "TTFT"):
        left = name in ("model", "unit")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for model in seen.status["models"]:
        table.add_row(*_row(model, seen))
    console.print()
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


def _row(model: dict[str, Any], seen: Seen) -> tuple[str, ...]:
    chats = [chat for chat in seen.chats if chat.model == model["served_name"]]
    placement = next(iter(model["placements"]), None)
    planned = format_bytes(placement["kv_bytes"]) if placement else "-"
    shares = (
        f"{placement['prefill_percent']} / {placement['decode_percent']} %" if placement else "-"
    )
    return (
        model["served_name"], model["unit"] or "-", shares, planned,
        format_bytes(seen.kv_peak.get(model["name"], 0)),
        str(sum(chat.tokens for chat in chats)), _ttft(chats),
    )  # fmt: skip


def _ttft(chats: list[Chat]) -> str:
    times = sorted(chat.ttft_s for chat in chats if chat.ttft_s is not None)
    return f"{times[0] * 1000:.0f} to {times[-1] * 1000:.0f} ms" if times else "-"
