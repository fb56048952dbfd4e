"""Where in a picture a task works: the picture, the mask of what is drawn anew, and the box that is looked at.

The box is brought to the size to work at, solved, brought back and laid over the picture through the mask: what lies
outside the mask are the picture's own pixels, bit for bit. Within the mask, `feather` pixels fade from old to new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from ..errors import UsageError
from ..formats.image import MAX_PIXELS, flatten, resized

if TYPE_CHECKING:
    from ..request import Request

SIDES = ("left", "top", "right", "bottom")
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the picture


@dataclass(frozen=True)
class Canvas:
    """A picture to be changed in part."""

    image: Image.Image  # RGB; what a hole in it would show is made up from around it
    mask: Image.Image  # L, as large: 255 is drawn anew, 0 stays, between is a mixture
    box: Box
    frame: Box | None = None  # what of it is handed out; everything if None

    def seen(self, size: tuple[int, int]) -> tuple[Image.Image, Tensor]:
        """What lies in the box, at the size to work at, and where it is drawn anew: [1, 1, H, W] of 0 and 1."""
        anew = self.mask.crop(self.box).point(lambda value: 255 if value else 0)
        at_work = np.array(resized(anew, size)) > 0 if anew.size == size else _any_of(anew, size)
        return resized(self.image.crop(self.box), size), torch.from_numpy(at_work)[None, None].float()

    def laid(self, feather: int, *, level: bool = True) -> Callable[[Image.Image], Image.Image]:
        """From what was drawn in the box to the whole picture.

        `level`: what was drawn is lifted by how far it missed the picture at the mask's rim, smoothly inwards (Perez et
        al. 2003, with the membrane of `made_up`), so that an autoencoder's change of hue makes no seam.
        """

        def whole_of(drawn: Image.Image) -> Image.Image:
            left, top, right, bottom = self.box
            old, mask = self.image.crop(self.box), self.mask.crop(self.box)
            new = resized(drawn, (right - left, bottom - top))
            fresh = self.image.copy()
            fresh.paste(_levelled(new, old, mask) if level else new, (left, top))
            whole = Image.composite(fresh, self.image, _faded(self.mask, feather))
            return whole if self.frame is None else whole.crop(self.frame)

        return whole_of


def canvas_of(request: Request) -> Canvas:
    """The canvas of a request that has an `image`. Raises UsageError for a mask that does not fit or says nothing."""
    assert request.image is not None
    if request.task == "outpaint":
        sides = tuple(getattr(request, side) or 0 for side in SIDES)
        return _grown(request.image.image, sides, (request.width or 1) / (request.height or 1))
    image = request.image.image
    mask = _mask(request, image)
    hole = (
        image.getchannel("A").point(lambda value: 255 if value < 128 else 0) if image.mode == "RGBA" else None
    )
    plain = flatten(image)
    filled = plain if hole is None or not hole.getbbox() else made_up(plain, hole)
    return Canvas(filled, mask, _box(mask, request.crop))


def area(request: Request, native: tuple[int, int]) -> tuple[int, int]:
    """Width and height in pixels of what a request about a picture looks at, with a model made for `native`."""
    assert request.image is not None
    if request.task == "outpaint":  # in the model's own proportions, see `_grown`
        return native
    if request.crop is None:
        return request.image.image.size
    left, top, right, bottom = canvas_of(request).box
    return right - left, bottom - top


def made_up(image: Image.Image, hole: Image.Image) -> Image.Image:
    """`image` with its `hole` (L, 255) filled from its rim, the further in the smoother: push and pull."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    there = torch.from_numpy(np.array(hole) == 0)[None, None].float()
    filled = _pulled(pixels * there, there)
    whole = torch.where(there > 0, pixels, filled).clamp(0, 255).round().byte()
    return Image.fromarray(whole[0].permute(1, 2, 0).contiguous().numpy())


def _levelled(new: Image.Image, old: Image.Image, mask: Image.Image) -> Image.Image:
    """`new` with the difference that `old` has to it outside the mask, carried on inside."""
    drawn, was = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() for image in (new, old))
    there = torch.from_numpy(np.array(mask) == 0)[None, None].float()
    if not there.any():
        return new
    lift = _pulled((was - drawn) * there, there)
    return Image.fromarray(
        (drawn + lift).clamp(0, 255).round().byte()[0].permute(1, 2, 0).contiguous().numpy()
    )


def _pulled(sums: Tensor, weight: Tensor) -> Tensor:
    """Means where something is there, elsewhere those of the half-sized picture, and so on."""
    means = sums / weight.clamp(min=1e-6)
    if bool((weight > 0).all()) or max(weight.shape[2:]) == 1:
        return means
    coarse = _pulled(
        F.avg_pool2d(means * (weight > 0), 2, ceil_mode=True),
        F.avg_pool2d((weight > 0).float(), 2, ceil_mode=True),
    )
    behind = F.interpolate(coarse, weight.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(weight > 0, means, behind)


def _grown(image: Image.Image, sides: tuple[int, ...], proportions: float) -> Canvas:
    """The picture on a ground that is larger, and worked at in the `proportions` (width to height) that are asked for.

    A model begins a second thing where its canvas is longer than those it was made with; in its own proportions it
    draws what lies around the first. What is drawn beyond the sides that were asked for is cut off.
    """
    left, top, right, bottom = sides
    if not any(sides):
        raise UsageError(
            "outpaint needs to know where to: give --left, --top, --right or --bottom, in pixels"
        )
    wide, high = image.width + left + right, image.height + top + bottom
    size = (max(wide, round(high * proportions)), max(high, round(wide / proportions)))
    if size[0] * size[1] > MAX_PIXELS:
        raise UsageError(
            f"outpaint would work on {size[0]} x {size[1]} pixels, more than {MAX_PIXELS:,}; grow the picture by less"
        )
    x, y = (size[0] - wide) // 2, (size[1] - high) // 2
    kept = (x + left, y + top, x + left + image.width, y + top + image.height)
    mask = Image.new("L", size, 255)
    mask.paste(0, kept)
    ground = Image.new("RGB", size)
    ground.paste(flatten(image), kept[:2])
    return Canvas(made_up(ground, mask), mask, (0, 0, *size), (x, y, x + wide, y + high))


def _mask(request: Request, image: Image.Image) -> Image.Image:
    if request.mask is None:
        if image.mode != "RGBA":
            raise UsageError(
                "inpaint needs to know where: give a --mask, or a picture that is transparent there"
            )
        mask = ImageChops.invert(image.getchannel("A"))
    else:
        mask = flatten(request.mask.image, (0, 0, 0)).convert("L")
        if mask.size != image.size and not request.fit_mask:
            raise UsageError(
                f"the mask has {mask.width} x {mask.height} pixels, the picture {image.width} x {image.height}; make "
                "them equal, or have the mask resized with --fit-mask"
            )
        mask = resized(mask, image.size)
    if not mask.getbbox():
        raise UsageError("the mask is empty: nothing is drawn anew; white, or transparent in the picture, is")
    if mask.getextrema()[0] == 255:
        raise UsageError(
            "the mask covers the whole picture: nothing of it would stay; use img2img or generate"
        )
    return mask


def _box(mask: Image.Image, margin: int | None) -> Box:
    """The whole picture, or the mask's surroundings up to a `margin`."""
    whole = (0, 0, *mask.size)
    found = mask.getbbox()
    if margin is None or found is None:
        return whole
    left, top, right, bottom = found
    return (
        max(0, left - margin),
        max(0, top - margin),
        min(mask.width, right + margin),
        min(mask.height, bottom + margin),
    )


def _faded(mask: Image.Image, feather: int) -> Image.Image:
    """The mask, rising from 0 at its edge to its own value `feather` pixels inside."""
    if feather == 0:
        return mask
    hard = mask.point(lambda value: 255 if value else 0)
    around = Image.new("L", (mask.width + 2 * feather, mask.height + 2 * feather), 0)
    around.paste(_replicated(hard, feather))
    inner = around.filter(ImageFilter.MinFilter(2 * (feather // 2) + 1)).filter(
        ImageFilter.BoxBlur(feather / 2)
    )
    inner = inner.crop((feather, feather, feather + mask.width, feather + mask.height))
    return ImageChops.multiply(mask, inner)


def _replicated(mask: Image.Image, margin: int) -> Image.Image:
    """The mask with its rim repeated: the picture's edge is not the mask's."""
    return Image.fromarray(np.pad(np.array(mask), margin, mode="edge"))


def _any_of(anew: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """[H, W] True where any pixel that falls there is drawn anew."""
    values = torch.from_numpy(np.array(anew))[None, None].float()
    width, height = size
    if width <= anew.width and height <= anew.height:
        return (F.adaptive_max_pool2d(values, (height, width))[0, 0] > 0).numpy()
    return (F.interpolate(values, (height, width), mode="nearest-exact")[0, 0] > 0).numpy()
