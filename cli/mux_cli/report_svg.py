"""SVG from numbers: frames, axes, lines, named where they end. Colours are the style sheet's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH = 720.0
COLOURS = 8
LABEL_GAP = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A plot area inside an SVG, and what its edges stand for."""

    height: float = 300.0
    left: float = 56.0
    right: float = 120.0
    top: float = 16.0
    bottom: float = 44.0
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool = False

    def x(self, value: float) -> float:
        low, high = self.x_range
        if self.log_x:
            value, low, high = log10(value), log10(low), log10(high)
        part = (value - low) / (high - low) if high > low else 0.5
        return self.left + part * (WIDTH - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        part = (value - low) / (high - low) if high > low else 0.0
        return self.height - self.bottom - part * (self.height - self.top - self.bottom)


Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A named line; `band`: (low, high) per point."""

    label: str
    points: Points
    colour: int
    band: Sequence[tuple[float, float]] = ()
    dashed: bool = False


def chart(name: str, title: str, description: str, frame: Frame, *body: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {frame.height:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-text"><title id="{name}-title">{escape(title)}'
        f'</title><desc id="{name}-text">{escape(description)}</desc>{"".join(body)}</svg>'
    )


def axes(
    frame: Frame, across: Sequence[float], up: Sequence[float], *, x_title: str, y_unit: str = ""
) -> str:
    floor_y, right = frame.height - frame.bottom, WIDTH - frame.right
    found = []
    for value in up:
        y = frame.y(value)
        found.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{right}"/>'
                     f'<text class="tick up" x="{frame.left - 8}" y="{y + 4:.1f}">'
                     f"{value:g}{y_unit}</text>")  # fmt: skip
    for value in across:
        x = frame.x(value)
        found.append(
            f'<path class="grid" d="M{x:.1f} {frame.top}V{floor_y}"/>'
            f'<text class="tick" x="{x:.1f}" y="{floor_y + 18}">{value:g}</text>'
        )
    middle = (frame.left + right) / 2
    found.append(f'<text class="axis" x="{middle:.1f}" y="{frame.height - 6}">'
                 f"{escape(x_title)}</text>")  # fmt: skip
    return "".join(found)


def ticks(ends: tuple[float, float], wanted: int = 5) -> list[float]:
    """Round numbers between the ends, about `wanted` of them."""
    low, high = ends
    if high <= low:
        return [low]
    rough = (high - low) / wanted
    power = 10 ** floor(log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    first = -(-low // step)
    found = [step * (first + index) for index in range(wanted * 3)]
    return [round(value, 10) for value in found if value <= high * (1 + 1e-9)]


def lines(frame: Frame, lines: Sequence[Line], *, dots: bool = True) -> Iterable[str]:
    for line in lines:
        if not line.points:
            continue
        style = "muted" if line.colour < 0 else f"s{line.colour % COLOURS}"
        if line.band:
            yield _band(frame, line, line.colour % COLOURS)
        dashes = ' stroke-dasharray="5 5"' if line.dashed else ""
        yield f'<path class="line {style}"{dashes} d="{_path(frame, line.points)}"/>'
        if dots and not line.dashed:
            yield "".join(
                f'<circle class="{style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5">'
                f"<title>{escape(line.label)}: {y:.1f} at {x:g}</title></circle>"
                for x, y in line.points
            )
    yield from _end_labels(frame, [line for line in lines if line.points])


def _end_labels(frame: Frame, lines: Sequence[Line]) -> Iterable[str]:
    """Names beside the lines' ends, moved apart where they would overlap."""
    placed = frame.top - LABEL_GAP
    room = frame.height - frame.bottom
    for count, line in enumerate(sorted(lines, key=lambda line: -line.points[-1][1])):
        lowest = room - LABEL_GAP * (len(lines) - 1 - count)
        placed = max(placed + LABEL_GAP, min(frame.y(line.points[-1][1]), lowest))
        style = "muted" if line.colour < 0 else f"t{line.colour % COLOURS}"
        yield (f'<text class="name {style}" x="{WIDTH - frame.right + 10:.1f}" '
               f'y="{placed + 4:.1f}">{escape(line.label)}</text>')  # fmt: skip


def _path(frame: Frame, points: Points) -> str:
    return "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)


def _band(frame: Frame, line: Line, colour: int) -> str:
    xs = [x for x, _ in line.points]
    upper = [(x, high) for x, (_, high) in zip(xs, line.band, strict=True)]
    lower = [(x, low) for x, (low, _) in zip(xs, line.band, strict=True)]
    return f'<path class="band f{colour}" d="{_path(frame, [*upper, *reversed(lower)])}z"/>'


def marker(frame: Frame, x: float, label: str) -> str:
    at, low = frame.x(x), frame.height - frame.bottom
    return (
        f'<path class="marker" d="M{at:.1f} {frame.top}V{low}"/>'
        f'<text class="tick" x="{at:.1f}" y="{frame.top - 4}">{escape(label)}</text>'
    )
