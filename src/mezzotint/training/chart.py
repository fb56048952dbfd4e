"""Curves as SVG text: an axis below, one at the left, lines, bands and marks; no more than a run's report needs.

Colours are CSS variables with a fixed fallback, so that a page may change them and a lone file shows as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 40  # margins
INK, SOFT, LINE = "var(--ink, #26241f)", "var(--soft, #615c52)", "var(--line, #d8d2c6)"
POINTS = 600  # of a line; more are thinned out
DECADES = 1.3  # a span of more than so many is shown on a logarithmic axis

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str  # "" : not in the legend
    points: Sequence[Point]
    colour: str
    faint: bool = False
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()  # x, low, high


@dataclass(frozen=True)
class Axis:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) < 4 else (1,)
            found = [float(f"{m}e{d}") for d in decades for m in steps]
            found = found[:: 1 + len(found) // 12]
        else:
            unit = _nice((self.high - self.low) / 5)
            first = math.ceil(self.low / unit - 1e-9)
            found = [unit * i for i in range(first, first + 12)]
        slack = (self.high - self.low) * 1e-9
        return [v for v in found if self.low - slack <= v <= self.high + slack]


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x: str = "step",
    log: bool | None = None,
    log_x: bool = False,
    zero: bool = False,
    marks: Sequence[float] = (),
    at: tuple[float, float] | None = None,
) -> str:
    """An <svg> element. `log`: the left axis; None: by itself. `marks`: upright lines. `at`: inside another."""
    curves = [_finite(curve) for curve in curves]
    xs = [p[0] for curve in curves for p in curve.points]
    ys = [v for c in curves for v in (*(p[1] for p in c.points), *(v for b in c.band for v in b[1:]))]
    where = "" if at is None else f' x="{at[0]:g}" y="{at[1]:g}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg"{where} width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="system-ui, sans-serif" font-size="11">'
        f"<title>{escape(title)}</title>"
        f'<text x="{LEFT - 44}" y="16" font-size="13" font-weight="600" fill="{INK}">{escape(title)}</text>'
    )
    if not xs:
        return f'{head}<text x="{LEFT}" y="{HEIGHT / 2}" fill="{SOFT}">nothing yet</text></svg>'
    if log is None:
        log = min(ys) > 0 and math.log10(max(ys) / min(ys)) > DECADES
    across = _axis(xs, LEFT, WIDTH - RIGHT, log=log_x, room=0.0)
    upright = _axis([*ys, 0.0] if zero and not log else ys, HEIGHT - BOTTOM, TOP, log=log, room=0.05)
    parts = [head, *_grid(across, upright, x)]
    parts += [
        f'<line x1="{across(m):.1f}" x2="{across(m):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#b3261e" '
        'stroke-width="1" opacity=".45"/>'
        for m in marks
        if across.low <= m <= across.high
    ]
    for curve in curves:
        parts += _drawn(curve, across, upright)
    return "".join([*parts, *_legend(curves), "</svg>"])


def together(charts: Sequence[tuple[str, Sequence[Curve]]], *, columns: int = 2) -> str:
    """Several charts of (title, curves) as one picture that stands alone."""
    rows = -(-len(charts) // columns)
    width, height = columns * WIDTH, rows * HEIGHT
    inner = [
        chart(title, curves, at=(i % columns * WIDTH, i // columns * HEIGHT))
        for i, (title, curves) in enumerate(charts)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{"".join(inner)}</svg>\n'
    )


def smooth(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """The mean over a window of a share of all points, around each."""
    reach = max(1, int(len(points) * share / 2))
    windows = (points[max(0, i - reach) : i + reach + 1] for i in range(len(points)))
    return [(p[0], sum(q[1] for q in near) / len(near)) for p, near in zip(points, windows, strict=True)]


def ramp(share: float) -> str:
    """A colour from blue (0) over violet to orange (1)."""
    stops = ((37, 99, 171), (126, 87, 160), (204, 92, 92), (222, 142, 48))
    at = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    i = min(int(at), len(stops) - 2)
    mixed = (round(a + (b - a) * (at - i)) for a, b in zip(stops[i], stops[i + 1], strict=True))
    return "#" + "".join(f"{v:02x}" for v in mixed)


def short(value: float) -> str:
    """A number for an axis: 0.005, 1.2k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.4g}"


def _axis(values: Sequence[float], start: float, end: float, *, log: bool, room: float) -> Axis:
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - abs(low or 1) / 2, high + abs(high or 1) / 2)
    if log:
        spread = (high / low) ** room
        return Axis(low / spread, high * spread, start, end, log)
    spread = (high - low) * room
    return Axis(low - spread * (low != 0), high + spread, start, end, log)


def _grid(across: Axis, upright: Axis, x: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in upright.ticks():
        y = upright(value)
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{LINE}"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="{SOFT}">{short(value)}</text>',
        ]
    for value in across.ticks():
        parts += [
            f'<text x="{across(value):.1f}" y="{bottom + 15}" text-anchor="middle" fill="{SOFT}">{short(value)}</text>'
        ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts += [f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" fill="{SOFT}">{escape(x)}</text>']
    return parts


def _drawn(curve: Curve, across: Axis, upright: Axis) -> list[str]:
    def path(points: Sequence[Point]) -> str:
        return " ".join(f"{across(x):.1f},{upright(y):.1f}" for x, y in points)

    parts = []
    if curve.band:
        around = [(x, low) for x, low, _ in curve.band] + [(x, high) for x, _, high in reversed(curve.band)]
        parts += [f'<polygon points="{path(around)}" fill="{curve.colour}" opacity=".18"/>']
    thin = curve.points[:: 1 + len(curve.points) // POINTS]
    if curve.points and thin[-1] != curve.points[-1]:
        thin = [*thin, curve.points[-1]]
    style = 'stroke-width="1" opacity=".3"' if curve.faint else 'stroke-width="1.7"'
    parts += [
        f'<polyline points="{path(thin)}" fill="none" stroke="{curve.colour}" {style} stroke-linejoin="round"/>'
    ]
    if curve.dots or len(curve.points) == 1:
        parts += [
            f'<circle cx="{across(x):.1f}" cy="{upright(y):.1f}" r="2.6" fill="{curve.colour}">'
            f"<title>{short(x)}: {y:.4g}</title></circle>"
            for x, y in thin
        ]
    return parts


def _legend(curves: Sequence[Curve]) -> list[str]:
    parts, x = [], float(WIDTH - RIGHT)
    for curve in reversed([c for c in curves if c.name]):
        x -= 6.2 * len(curve.name) + 20
        parts += [
            f'<rect x="{x:.0f}" y="20" width="10" height="3" fill="{curve.colour}"/>',
            f'<text x="{x + 14:.0f}" y="25" fill="{SOFT}">{escape(curve.name)}</text>',
        ]
    return parts


def _finite(curve: Curve) -> Curve:
    points = [(float(x), float(y)) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)]
    return Curve(curve.name, points, curve.colour, curve.faint, curve.dots, curve.band)


def _nice(unit: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(unit))
    return size * next(m for m in (1, 2, 5, 10) if m * size >= unit * (1 - 1e-9))
