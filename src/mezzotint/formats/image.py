"""Pictures on disk and as tensors.

What others made is opened with bounds: few formats, so many pixels and no more, the camera's turn applied, eight
bits, RGB or RGBA. What we make is written as PNG with its recipe inside. A tensor picture is [3, H, W] in [-1, 1].
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from ..errors import MezzotintError
from .atomic import write_file
from .credentials import Signing, signed
from .recipe import (
    CHUNK,
    COMPOSITE,
    GENERATED,
    SOURCE_TYPE,
    TEXT_CHUNK,
    XMP_CHUNK,
    parse_infotext,
    png_info,
    xmp,
)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000  # as much as a good camera makes


def open_image(
    source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS, name: str = "the picture"
) -> Image.Image:
    """A picture as RGB, or as RGBA if it has transparency: upright, eight bits, the first frame of several.

    `source` is a path or the file's bytes (`name` then stands for it in messages). Nothing of more than `max_pixels`
    is decoded. Raises MezzotintError if it is missing, too large, cut short, or none of `FORMATS`.
    """
    name = name if isinstance(source, bytes) else str(source)
    with _explained(name):
        return upright(_opened(source, name, max_pixels))


def upright(image: Image.Image) -> Image.Image:
    """RGB, or RGBA if it has transparency: the camera's turn applied, 16 bits brought to eight."""
    return _plain(ImageOps.exif_transpose(image))


def flatten(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """RGB: what is transparent shows `background`."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(ground, image).convert("RGB")


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at another size (width, height); itself if it has that one."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] float32 in [-1, 1] of an RGB picture; transparency shows white."""
    pixels = torch.from_numpy(np.array(flatten(image)))  # [H, W, 3] uint8
    return pixels.permute(2, 0, 1).float() / 255 * 2 - 1


def to_image(picture: Tensor) -> Image.Image:
    """The RGB picture of [3, H, W] in [-1, 1]; values outside are clipped, others rounded to the nearest of 256."""
    unit = (picture.detach().float().cpu() / 2 + 0.5).clamp(0, 1)
    return Image.fromarray((unit * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def save_image(
    path: Path | str,
    image: Image.Image,
    recipe: Mapping[str, Any],
    *,
    source: str | None = None,
    signing: Signing | None = None,
    replace: bool = False,
) -> Path:
    """Write a PNG with `recipe` (a JSON object, see `recipe.py`) inside, and return its path.

    `source` is IPTC's; if None, it is `COMPOSITE` where the recipe works on a picture that was there before. `signing`:
    also sign it, see `credentials.py`.

    Raises MezzotintError if `path` is no PNG's name, and as `atomic.new_file` does.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise MezzotintError(f"{path}: pictures are written as PNG; give a name that ends in .png")
    write_file(path, encode_image(image, recipe, source=source, signing=signing), replace=replace)
    return path


def source_of(recipe: Mapping[str, Any]) -> str:
    """IPTC's word for how a picture came about: whether the recipe works on one that was there before."""
    return COMPOSITE if recipe.get("image") else GENERATED


def encode_image(
    image: Image.Image,
    recipe: Mapping[str, Any],
    *,
    kind: str = "png",
    quality: int = 95,
    source: str | None = None,
    signing: Signing | None = None,
) -> bytes:
    """A picture's file as bytes: "png" with `recipe` inside; "jpeg" or "webp" with what is known of its origin alone.

    `quality` is that of "jpeg" and "webp", 0 to 100.
    """
    source = source or source_of(recipe)
    held = io.BytesIO()
    if kind == "png":
        image.save(held, format="PNG", pnginfo=png_info(recipe, source=source))
    else:
        image.save(held, format=kind.upper(), quality=quality, xmp=xmp(source).encode())
    made = held.getvalue()
    return made if signing is None else signed(made, signing, kind=kind, source=source)


def encode_plain(image: Image.Image) -> bytes:
    """A PNG of pixels alone, for what is looked at and not kept."""
    held = io.BytesIO()
    image.save(held, format="PNG", compress_level=1)
    return held.getvalue()


def read_recipe(source: Path | str | bytes, *, name: str = "the picture") -> dict[str, Any]:
    """The recipe inside a PNG: ours complete, or what an AUTOMATIC1111 text says, under our names.

    Raises MezzotintError if the picture cannot be opened or carries none.
    """
    name = name if isinstance(source, bytes) else str(source)
    with _explained(name):
        picture = _opened(source, name, MAX_PIXELS)
    texts = picture.text if isinstance(picture, PngImagePlugin.PngImageFile) else {}
    if CHUNK in texts:
        try:
            recipe = json.loads(texts[CHUNK])
        except ValueError as error:
            raise MezzotintError(f"{name}: its recipe is damaged ({error})") from error
        if isinstance(recipe, dict):
            return recipe
        raise MezzotintError(f"{name}: its recipe is damaged (no JSON object)")
    if TEXT_CHUNK in texts:
        return parse_infotext(texts[TEXT_CHUNK])
    raise MezzotintError(f"{name} carries no recipe; only PNGs that were not re-saved by another program do")


def read_source(source: Path | str | bytes, *, name: str = "the picture") -> str | None:
    """IPTC's word for how a picture came about, from its XMP, whatever the format; None if it has none.

    Raises MezzotintError if the picture cannot be opened.
    """
    name = name if isinstance(source, bytes) else str(source)
    with _explained(name):
        picture = _opened(source, name, MAX_PIXELS)
    packet = picture.info.get("xmp") or picture.info.get(XMP_CHUNK) or ""
    text = packet.decode(errors="replace") if isinstance(packet, bytes) else str(packet)
    found = re.search(re.escape(SOURCE_TYPE) + r"(\w+)", text)
    return found[1] if found else None


def _opened(source: Path | str | bytes, name: str, max_pixels: int) -> Image.Image:
    """A picture decoded: its size is known and checked before a pixel of it is."""
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        picture = Image.open(file, formats=FORMATS)
        width, height = picture.size
        if width * height > max_pixels:
            raise MezzotintError(
                f"{name} has {width} x {height} pixels, more than {max_pixels:,} are not opened; make it smaller first"
            )
        picture.load()
    return picture


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, which a conversion would clip
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow warns of sizes, which are checked here, and of odd metadata
            yield
    except MezzotintError:
        raise
    except Exception as error:  # decoders raise all kinds of things on damaged input
        raise MezzotintError(_reason(error, name)) from error


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name}: there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return f"{name} is not a picture; {', '.join(FORMATS)} can be read"
    if isinstance(error, Image.DecompressionBombError):
        return f"{name} has too many pixels; make it smaller first"
    if isinstance(error, OSError) and error.strerror:
        return f"{name} cannot be read ({error.strerror.lower()})"
    return f"{name} is damaged or cut short ({' '.join(str(error).split()) or type(error).__name__})"
