"""Captioned emoji: every glyph of Noto Color Emoji as a 128 x 128 RGBA picture with its names and keywords.

The font holds each glyph as a PNG of 136 x 128 (tables CBDT, CBLC); the four columns left and right of the
middle 128 are empty. Sequences (families, flags, skin tones) are ligatures of the GSUB table, so that the code
points of a glyph are read off the font without shaping text. Names come from Unicode CLDR by way of the `emoji`
package, keywords from a file in the shape of emojilib's (emoji -> list of words).
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import MezzotintError, UsageError
from ..formats.atomic import new_folder, read_json

SIZE = 128
VARIATION_SELECTOR = 0xFE0F  # "draw it in colour"; carries nothing that tells two pictures apart
SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))

Codepoints = tuple[int, ...]  # of one emoji, without the variation selector


class Glyph(NamedTuple):
    """A picture of a source; several sequences may lead to one (flags, orders of writing)."""

    where: str
    open: Callable[[], Image.Image]


Glyphs = dict[Codepoints, Glyph]

_FONT_NAME = "NotoColorEmoji.ttf"
_FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
)
_PICTURE_NAME = re.compile(r"emoji_u([0-9a-f]{4,6}(?:_[0-9a-f]{4,6})*)\.png")
_TOO_BIG = 64 << 20  # bytes of one picture in an archive


@dataclass(frozen=True)
class Emoji:
    """One named picture; `record` is its line of `metadata.jsonl`."""

    record: dict[str, Any]
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class EmojiSet:
    """What a source holds: named pictures in the order of their code points, and how many had no name."""

    pictures: tuple[Emoji, ...]
    unnamed: int
    source: str

    def __len__(self) -> int:
        return len(self.pictures)


def emoji_set(
    *, font: Path | str | None = None, images: Path | str | None = None, keywords: Path | str | None = None
) -> EmojiSet:
    """The emoji of a font file, or of a folder or tar of PNGs (`emoji_u1f34e.png`), with names and keywords.

    With neither, the usual font folders are searched. Nothing is decoded yet. Raises UsageError if both are
    given or a file is missing, MezzotintError if no font is found or the source holds no emoji.
    """
    if font is not None and images is not None:
        raise UsageError("give either a font or a folder of pictures, not both")
    if images is not None:
        source = Path(images)
        glyphs = picture_glyphs(source)
    else:
        source = Path(font) if font is not None else find_font()
        glyphs = font_glyphs(source)
    if not glyphs:
        raise MezzotintError(f"{source} holds no emoji; expected pictures named like emoji_u1f34e.png")
    named = emoji_names()
    words = _read_keywords(Path(keywords)) if keywords is not None else {}
    pictures = tuple(
        Emoji(_record(points, *named[points], words), partial(_canonical, glyphs[points].open))
        for points in sorted(glyphs)
        if points in named
    )
    distinct = {glyph.where for glyph in glyphs.values()}
    reached = {glyphs[points].where for points in glyphs if points in named}
    return EmojiSet(pictures, unnamed=len(distinct - reached), source=str(source))


def write_emoji(emoji: EmojiSet, out: Path | str, *, replace: bool = False) -> Iterator[dict[str, Any]]:
    """Write an imagefolder (`*.png`, `metadata.jsonl`) to `out`, yielding each record once it is written.

    The folder appears, whole, when the iterator is exhausted. The same source gives the same bytes. Raises
    MezzotintError if `out` exists (unless `replace`), cannot be written, or a picture is damaged.
    """
    lines = []
    with new_folder(out, replace=replace) as folder:
        for picture in emoji.pictures:
            picture.open().save(folder / picture.record["file_name"])
            lines.append(json.dumps(picture.record, ensure_ascii=False) + "\n")
            yield picture.record
        (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


# --- where pictures come from ---


def find_font() -> Path:
    """The installed Noto Color Emoji font; MezzotintError with the remedy if there is none."""
    for folder in _FONT_FOLDERS:
        found = sorted(Path(folder).expanduser().rglob(_FONT_NAME))
        if found:
            return found[0]
    raise MezzotintError(
        f"no {_FONT_NAME} in the font folders; install it (Debian, Ubuntu: apt install "
        "fonts-noto-color-emoji), or name one with --font FILE, or a folder or tar of its PNGs with --images"
    )


def font_glyphs(path: Path) -> Glyphs:
    """The colour bitmaps of a font: of single characters (cmap) and of sequences (GSUB ligatures)."""
    try:
        from fontTools.ttLib import TTFont, TTLibError
    except ImportError as error:
        raise _needs("fonttools") from error
    try:
        font = TTFont(path)
        if "CBDT" not in font:
            raise MezzotintError(
                f"{path} holds no colour bitmaps (table CBDT); use the bitmap build of Noto Color Emoji"
            )
        strikes = [
            (strike.bitmapSizeTable.ppemY, bitmaps)
            for strike, bitmaps in zip(font["CBLC"].strikes, font["CBDT"].strikeData, strict=True)
        ]
        bitmaps = max(strikes, key=lambda strike: strike[0])[1]
        characters = font.getBestCmap()
        sequences: dict[Codepoints, str] = {(code,): glyph for code, glyph in characters.items()}
        sequences |= _ligatures(font, {glyph: code for code, glyph in characters.items()})
    except OSError as error:
        raise UsageError(f"font {path} cannot be read ({error.strerror or error})") from error
    except (TTLibError, AssertionError, KeyError) as error:
        raise MezzotintError(f"{path} is no font that can be read ({error})") from error
    return {
        _bare(points): _glyph(partial(getattr, bitmaps[glyph], "imageData"), f"{path}: {glyph}")
        for points, glyph in sequences.items()
        if glyph in bitmaps
    }


def _ligatures(font: Any, codes: dict[str, int]) -> dict[Codepoints, str]:
    """Code points -> glyph for every ligature whose parts are characters."""
    found: dict[Codepoints, str] = {}
    if "GSUB" not in font:
        return found
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = getattr(table, "ExtSubTable", table)
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    parts = [codes.get(part) for part in (first, *ligature.Component)]
                    points = tuple(part for part in parts if part is not None)
                    if len(points) == len(parts):
                        found.setdefault(points, ligature.LigGlyph)  # an earlier lookup is applied first
    return found


def picture_glyphs(path: Path) -> Glyphs:
    """The pictures `emoji_u<hex>[_<hex>...].png` of a folder or of a tar archive."""
    if path.is_dir():
        files = {file.name: _glyph(file.read_bytes, str(file)) for file in path.glob("emoji_u*.png")}
    elif path.is_file():
        files = {name: _glyph(partial(bytes, content), f"{path}: {name}") for name, content in _archive(path)}
    else:
        raise UsageError(f"{path} does not exist; name a folder or a tar of pictures like emoji_u1f34e.png")
    matches = {name: _PICTURE_NAME.fullmatch(name) for name in sorted(files)}
    return {
        _bare(int(part, 16) for part in match[1].split("_")): files[name]
        for name, match in matches.items()
        if match
    }


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the pictures in a tar; read in memory, so that no path in it is ever written to."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if member.isfile() and member.size < _TOO_BIG and _PICTURE_NAME.fullmatch(name):
                    file = archive.extractfile(member)
                    if file is not None:
                        yield name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise MezzotintError(f"{path} is no tar archive that can be read ({error})") from error


def _glyph(read: Callable[[], bytes], where: str) -> Glyph:
    return Glyph(where, partial(_decode, read, where))


def _decode(read: Callable[[], bytes], where: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(read()), formats=["PNG"]) as picture:
            return picture.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MezzotintError(f"{where} is a damaged picture ({error}); install the set again") from error


def _canonical(load: Callable[[], Image.Image]) -> Image.Image:
    """128 x 128 RGBA, black where transparent: shrunk if higher, then cut or padded about the middle."""
    picture = load()
    if picture.height != SIZE:
        width = round(picture.width * SIZE / picture.height)
        picture = picture.resize((width, SIZE), Image.Resampling.LANCZOS)
    left = (picture.width - SIZE) // 2
    picture = picture.crop((left, 0, left + SIZE, SIZE))  # beyond the edges PIL fills with transparent
    pixels = np.array(picture)  # [128, 128, 4]
    pixels[pixels[..., 3] == 0] = 0
    return Image.fromarray(pixels)


# --- what they are called ---


def emoji_names() -> dict[Codepoints, tuple[str, dict[str, Any]]]:
    """Code points -> (the fully qualified emoji, its entry in the `emoji` package)."""
    try:
        import emoji
    except ImportError as error:
        raise _needs("emoji") from error
    names: dict[Codepoints, tuple[str, dict[str, Any]]] = {}
    for character, entry in emoji.EMOJI_DATA.items():
        points = _bare(map(ord, character))
        if points not in names or entry["status"] == emoji.STATUS["fully_qualified"]:
            names[points] = (character, entry)
    return names


def plain(name: str) -> str:
    """A name in plain words: `:man’s_shoe:` -> `man's shoe`."""
    text = unicodedata.normalize("NFC", name).translate(_TYPOGRAPHIC)
    return " ".join(text.lower().replace(":", " ").split())


def clean_word(word: str) -> str | None:
    """A keyword or alias in plain words, or None if it says nothing about the picture.

    Dropped: smileys and bare numbers (`:D`, `101`), numbered short codes (`dog2`, `clock1230`, `u6708`),
    notes on the style of a set (`blue-square`), pieces of split phrases (`of`, `lock with`).
    """
    text = "".join(c for c in plain(word) if not unicodedata.category(c).startswith("S"))  # 🚓, ®, +
    text = text.strip(" '\";,_")
    if not re.search(r"[^\W\d_]{2}", text) or re.search(r"[^\W\d_]\d|\d[^\W\d_]", text):
        return None
    if text in _JUNK or re.fullmatch(r"\w+-(square|circle)", text) or text.split()[-1] in _LOOSE:
        return None
    return text


_TYPOGRAPHIC = str.maketrans({"_": " ", "\u00a0": " ", **dict.fromkeys("‘’“”", "'")})
_SKIN_TONE = re.compile(r" [a-z-]+ skin tone")
_JUNK = frozenset({"xd", "'open", "charge'", "business'"})
_LOOSE = frozenset({"a", "an", "and", "at", "by", "for", "from", "of", "or", "the", "to", "with"})


def _record(
    points: Codepoints, character: str, entry: dict[str, Any], words: dict[Codepoints, list[str]]
) -> dict:
    name = plain(entry["en"])
    aliases = _distinct(entry.get("alias", []), known=[name])
    toneless = tuple(point for point in points if point not in SKIN_TONES)
    listed = words.get(points) or words.get(toneless, [])
    hexadecimal = "_".join(f"{point:04x}" for point in points)
    return {
        "file_name": f"emoji_u{hexadecimal}.png",
        "text": name,
        "name": entry["en"].strip(":"),
        "aliases": aliases,
        "keywords": _distinct(listed, known=[name, _SKIN_TONE.sub("", name), *aliases]),
        "emoji": character,
        "codepoints": hexadecimal,
        "skin_tone": toneless != points,
    }


def _distinct(words: Iterable[str], *, known: Iterable[str]) -> list[str]:
    """The words that are clean and new; two that differ in signs alone (`o clock`, `o'clock`) are one."""
    seen, new = {_letters(word) for word in known}, []
    for word in filter(None, map(clean_word, words)):
        if _letters(word) not in seen:
            seen.add(_letters(word))
            new.append(word)
    return new


def _letters(word: str) -> str:
    return re.sub(r"\W", "", word)


def _read_keywords(path: Path) -> dict[Codepoints, list[str]]:
    content = read_json(path)
    for character, words in content.items():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise MezzotintError(f"{path}: the entry of {character} is no list of words")
    return {_bare(map(ord, character)): words for character, words in content.items()}


def _bare(points: Iterable[int]) -> Codepoints:
    return tuple(point for point in points if point != VARIATION_SELECTOR)


def _needs(package: str) -> MezzotintError:
    return MezzotintError(
        f"this needs the package '{package}'; install it with pip install 'mezzotint[train]'"
    )
