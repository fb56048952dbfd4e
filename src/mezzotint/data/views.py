"""From a picture of any shape to one of a batch's: scaled to cover a bucket, a window cut out, perhaps mirrored.

A bucket is a size of about resolution^2 pixels whose sides are multiples of `step` (aspect-ratio buckets, NovelAI
2022); a picture goes to the one whose shape is nearest, so that little of it is cut off. Which window and whether it
is mirrored are functions of what the caller draws from (seed, picture): see `training/pictures.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..formats.image import flatten

Size = tuple[int, int]  # width, height


class View(NamedTuple):
    """One way to see a picture: at which size, through which window, mirrored or not."""

    size: Size
    left: float = 0.5  # share of the room beside the window that is left of it
    top: float = 0.5
    mirrored: bool = False


@dataclass(frozen=True)
class Seen:
    """A view of a picture, and what SDXL is told of it."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    original: Size  # of the picture before it was scaled
    corner: tuple[int, int]  # (left, top) of the window, in pixels of the scaled picture


def buckets(resolution: int, step: int, most: float = 2.0) -> list[Size]:
    """The sizes of at most resolution^2 pixels whose sides are multiples of `step`, up to the ratio `most`.

    For each width there is the largest height, and the reverse. `most` = 1 gives the square alone.
    """
    area = resolution * resolution
    short = [n * step for n in range(1, resolution // step + 1)]
    found = {(resolution // step * step,) * 2}
    for side in short:
        long = area // side // step * step
        if long <= most * side:
            found |= {(side, long), (long, side)}
    return sorted(found)


def nearest(size: Size, choices: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest, by the logarithm; the larger one of equals."""
    ratio = math.log(size[0] / size[1])
    return min(choices, key=lambda b: (round(abs(math.log(b[0] / b[1]) - ratio), 9), -b[0] * b[1]))


def cut_off(size: Size, bucket: Size) -> float:
    """The share of a picture's area that is lost in a bucket."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    return 1 - (bucket[0] * bucket[1]) / (size[0] * size[1] * scale * scale)


def seen(picture: Image.Image, view: View, background: tuple[int, int, int] = (255, 255, 255)) -> Seen:
    """The picture by a view; transparency shows `background`. Shrunk with Lanczos's filter, which does not alias."""
    picture = flatten(picture, background)
    width, height = view.size
    scale = max(width / picture.width, height / picture.height)
    covering = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    scaled = picture if covering == picture.size else picture.resize(covering, Image.Resampling.LANCZOS)
    corner = (round(view.left * (covering[0] - width)), round(view.top * (covering[1] - height)))
    pixels = np.asarray(scaled)[corner[1] : corner[1] + height, corner[0] : corner[0] + width]
    if view.mirrored:
        pixels = pixels[:, ::-1]
    return Seen(np.array(pixels), picture.size, corner)


class Bucket(NamedTuple):
    """What lands in one size."""

    size: Size
    pictures: int
    cut_off: float  # share of their area that is lost, mean
    enlarged: int  # of the pictures


def bucket_rows(sizes: Sequence[Size], chosen: Sequence[Size]) -> list[Bucket]:
    """A row for each bucket that has pictures: `sizes` of pictures and the bucket `chosen` for each."""
    rows = []
    for bucket, count in sorted(Counter(chosen).items()):
        mine = [size for size, other in zip(sizes, chosen, strict=True) if other == bucket]
        lost = sum(cut_off(size, bucket) for size in mine) / count
        rows.append(Bucket(bucket, count, lost, sum(s[0] < bucket[0] or s[1] < bucket[1] for s in mine)))
    return rows


def bucket_table(rows: Sequence[Bucket]) -> str:
    """How many pictures each bucket has, how much of them is cut off, and how many are enlarged: a text table."""
    lines = ["bucket       pictures  cut off  enlarged"]
    for bucket in rows:
        name = f"{bucket.size[0]} x {bucket.size[1]}"
        lines.append(f"{name:<12} {bucket.pictures:>8}  {bucket.cut_off:>6.1%}  {bucket.enlarged:>8}")
    return "\n".join(lines)
