"""Films of diffusion, for people who want to see how it works.

The forward process drowns a picture in noise, z_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4):
beside it stands the histogram of its values, which turns into the bell of N(0, 1). The reverse process finds a picture
in noise: beside the state stands what the model believes the picture to be. Below both runs the schedule, noise over
signal (sigma), with a dot where the frame stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from .diffusion.noise import INITIAL, image_noise
from .diffusion.process import Process
from .formats.image import save_image, to_image, to_tensor
from .formats.sheet import save_film

GROUND, INK, FAINT, ACCENT = (255, 255, 255), (40, 40, 40), (190, 190, 190), (200, 60, 40)
NOISY, CLEAR = (240, 240, 244), (252, 249, 240)  # where noise outweighs the picture, and the reverse
SIDE, MARGIN, GRAPH = 256, 20, 170  # pixels: of a panel, around it, height of the schedule
FINE = 2  # curves are drawn so much larger, then shrunk: smooth lines
BINS = 64


@dataclass(frozen=True)
class Frame:
    """One moment: two panels, and where it stands."""

    left: Image.Image
    right: Image.Image
    at: int  # index into the film's levels


@dataclass(frozen=True)
class Film:
    """Frames and the noise levels that they walk along; level 0 is the clean picture."""

    title: str
    captions: tuple[str, str]  # of the two panels
    levels: tuple[float, ...]  # sigma at each step
    frames: tuple[Frame, ...]


def forward_film(image: Image.Image, process: Process, *, frames: int = 40, seed: int = 0) -> Film:
    """A picture sinks into noise: `frames` moments from clean to sigma_max, all with one and the same noise.

    Moments are even in the time that the net is told, so that the schedule shows in the film's pace.
    """
    x0 = to_tensor(image)
    eps = image_noise(seed, INITIAL, x0.shape)
    low, high = (float(process.time(torch.tensor(s))) for s in (process.sigma_min, process.sigma_max))
    times = torch.linspace(low, high, frames - 1, dtype=torch.float64)
    levels = (0.0, *process.sigma(times).tolist())
    made = []
    for i, sigma in enumerate(levels):
        z = (x0 + sigma * eps) * float(process.scale(torch.tensor(sigma, dtype=torch.float64)))
        made.append(Frame(to_image(z), histogram(z), i))
    return Film(
        "A picture sinks into noise", ("the picture as the net sees it", "its values"), levels, tuple(made)
    )


def reverse_film(
    prompt: str, moments: Sequence[tuple[float, Image.Image, Image.Image]], start: float
) -> Film:
    """A picture is found in noise: for each step its sigma, the state, and what the model believes to see.

    `start`: the noise level before the first step.
    """
    levels = (start, *(sigma for sigma, _, _ in moments))
    frames = tuple(Frame(state, belief, i + 1) for i, (_, state, belief) in enumerate(moments))
    shown = prompt if len(prompt) <= 60 else prompt[:59] + "…"
    return Film(
        f"“{shown}” is found in noise",
        ("the state, decoded", "what the model believes it is"),
        levels,
        frames,
    )


def save_film_and_sheet(
    path: Path, film: Film, *, recipe: Mapping[str, Any], replace: bool = False
) -> tuple[Path, Path]:
    """Write the film as GIF, and beside it `.png` with moments of it above the whole schedule; the two paths.

    Raises MezzotintError as `atomic.new_file` does.
    """
    save_film(
        path, [painted(film, frame) for frame in film.frames], recipe=recipe, seconds=0.15, replace=replace
    )
    sheet = path.with_suffix(".png")
    save_image(sheet, film_sheet(film), {"film": dict(recipe)}, replace=replace)
    return path, sheet


def painted(film: Film, frame: Frame) -> Image.Image:
    """One frame: title, two panels with captions, the schedule with a dot, and the numbers."""
    width = 2 * SIDE + 3 * MARGIN
    tops = (MARGIN + 24, MARGIN + 24 + SIDE + 26)
    canvas = Image.new("RGB", (width, tops[1] + GRAPH + 34), GROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((width / 2, MARGIN - 6), film.title, INK, _font(16), anchor="ma")
    for i, (panel, caption) in enumerate(zip((frame.left, frame.right), film.captions, strict=True)):
        left = MARGIN + i * (SIDE + MARGIN)
        canvas.paste(_fitted(panel, SIDE), (left, tops[0]))
        draw.text((left + SIDE / 2, tops[0] + SIDE + 5), caption, INK, _font(12), anchor="ma")
    canvas.paste(schedule(film.levels, width - 2 * MARGIN, GRAPH, at=frame.at), (MARGIN, tops[1]))
    draw.text((width / 2, tops[1] + GRAPH + 10), told(film.levels, frame.at), INK, _font(13), anchor="ma")
    return canvas


def film_sheet(film: Film, *, moments: int = 8) -> Image.Image:
    """Moments of the film side by side, both panels one above the other, and the schedule with a dot for each."""
    count = min(moments, len(film.frames))
    chosen = [film.frames[round(i * (len(film.frames) - 1) / max(count - 1, 1))] for i in range(count)]
    side, gap = 128, 10
    width = 2 * MARGIN + count * (side + gap) - gap
    graph_top = MARGIN + 30 + 2 * (side + gap) + 22
    canvas = Image.new("RGB", (width, graph_top + GRAPH + MARGIN), GROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((width / 2, MARGIN - 6), film.title, INK, _font(16), anchor="ma")
    for i, frame in enumerate(chosen):
        left = MARGIN + i * (side + gap)
        canvas.paste(_fitted(frame.left, side), (left, MARGIN + 24))
        canvas.paste(_fitted(frame.right, side), (left, MARGIN + 24 + side + gap))
        label = f"sigma {film.levels[frame.at]:.3g}"
        draw.text((left + side / 2, MARGIN + 24 + 2 * side + gap + 5), label, INK, _font(12), anchor="ma")
    dots = [frame.at for frame in chosen]
    canvas.paste(schedule(film.levels, width - 2 * MARGIN, GRAPH, at=dots), (MARGIN, graph_top))
    return canvas


def schedule(levels: Sequence[float], width: int, height: int, *, at: int | Iterable[int]) -> Image.Image:
    """The curve of sigma over the steps on a logarithmic axis, with dots at the steps `at`.

    A level of 0 stands on the floor of the axis. The ground tells where noise outweighs the picture (sigma > 1).
    """
    marked = [at] if isinstance(at, int) else list(at)
    left, top, bottom = 36 * FINE, 24 * FINE, 20 * FINE
    canvas = Image.new("RGB", (width * FINE, height * FINE), GROUND)
    draw = ImageDraw.Draw(canvas)
    positive = [level for level in levels if level > 0]
    low, high = math.floor(math.log10(min(positive)) - 0.3), math.ceil(math.log10(max(positive)))

    def x(step: float) -> float:
        return left + step / max(len(levels) - 1, 1) * (width * FINE - left - 8 * FINE)

    def y(level: float) -> float:
        share = (math.log10(level) - low) / (high - low) if level > 0 else 0.0
        return (height * FINE - bottom) - share * (height * FINE - bottom - top)

    ends = (x(0), x(len(levels) - 1))
    if low < 0 < high:
        draw.rectangle((ends[0], y(10**high), ends[1], y(1)), NOISY)
        draw.rectangle((ends[0], y(1), ends[1], y(0)), CLEAR)
        away = levels[0] < levels[-1]  # words stand where the curve does not
        for level, text in (
            (10 ** (high * 0.75), "more noise than picture"),
            (10 ** (low * 0.75), "more picture"),
        ):
            upper = level > 1
            side = ends[0] + 8 * FINE if upper == away else ends[1] - 8 * FINE
            draw.text((side, y(level)), text, FAINT, _font(11 * FINE), anchor="lm" if upper == away else "rm")
    for power in range(low, high + 1):
        draw.line((ends[0], y(10**power), ends[1], y(10**power)), FAINT, FINE // 2)
        label = f"{10.0**power:g}" if power > low else "0"
        draw.text(
            (left - 6 * FINE, y(10**power if power > low else 0)), label, INK, _font(10 * FINE), anchor="rm"
        )
    draw.text((left, 2 * FINE), "sigma, noise over signal", INK, _font(11 * FINE))
    draw.text(
        (ends[1], height * FINE - 2 * FINE), f"step {len(levels) - 1}", INK, _font(10 * FINE), anchor="rb"
    )
    draw.text((ends[0], height * FINE - 2 * FINE), "0", INK, _font(10 * FINE), anchor="lb")
    points = [(x(i), y(level)) for i, level in enumerate(levels)]
    draw.line(points, INK, 2 * FINE, joint="curve")
    for i in marked:
        draw.line((*points[i], points[i][0], y(0)), ACCENT, FINE)
        radius = 5 * FINE
        (px, py) = points[i]
        draw.ellipse((px - radius, py - radius, px + radius, py + radius), ACCENT)
    return canvas.resize((width, height), Image.Resampling.LANCZOS)


def histogram(z: torch.Tensor) -> Image.Image:
    """How often each value occurs in z, in [-3.5, 3.5], under the bell of N(0, 1)."""
    size, reach = SIDE * FINE, 3.5
    canvas = Image.new("RGB", (size, size), GROUND)
    draw = ImageDraw.Draw(canvas)
    density = torch.histc(z.float(), BINS, -reach, reach) / z.numel() * (BINS / (2 * reach))
    floor, height = size - 24 * FINE, size - 40 * FINE
    top = 1.2  # of the axis; the bell's is 0.4

    def y(value: float) -> float:
        return floor - min(value / top, 1.0) * height

    step = size / BINS
    for i, value in enumerate(density.tolist()):
        draw.rectangle((i * step + 1, y(value), (i + 1) * step - 1, floor), FAINT)
    bell = [(-reach + 2 * reach * i / 200) for i in range(201)]
    peak = 1 / math.sqrt(2 * math.pi)
    curve = [((v + reach) / (2 * reach) * size, y(peak * math.exp(-v * v / 2))) for v in bell]
    draw.line(curve, ACCENT, 2 * FINE, joint="curve")
    for value in (-3, -1, 0, 1, 3):
        at = (value + reach) / (2 * reach) * size
        draw.text((at, floor + 4 * FINE), str(value), INK, _font(11 * FINE), anchor="ma")
    draw.text((size - 6 * FINE, 8 * FINE), "bell: pure noise, N(0, 1)", ACCENT, _font(11 * FINE), anchor="ra")
    return canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def told(levels: Sequence[float], at: int) -> str:
    """Where a frame stands, in words and numbers; the signal's share of the power is 1 / (1 + sigma^2)."""
    sigma = levels[at]
    share = 100 / (1 + sigma**2)
    ratio = f"signal to noise {-20 * math.log10(sigma):+.1f} dB" if sigma > 0 else "no noise left"
    percent = f"{share:.0f} %" if share >= 1 else f"{share:.2g} %"
    return f"step {at} of {len(levels) - 1}    sigma {sigma:.3g}    {ratio}    signal {percent} of the power"


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """The picture within a square, whole pixels enlarged as such, on white."""
    scale = side / max(image.size)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    shown = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)), how)
    square = Image.new("RGB", (side, side), GROUND)
    square.paste(shown, ((side - shown.width) // 2, (side - shown.height) // 2))
    return square


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
