"""The recipe inside a picture: what is needed to make it again, and that a machine made it.

Three chunks of a PNG say so: `mezzotint`, a JSON object with everything; `parameters`, the text that AUTOMATIC1111
writes and most tools read; and XMP, where IPTC's DigitalSourceType says "trained algorithmic media". The text is

    prompt, on one or more lines
    Negative prompt: ...
    Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, Size: 512x512, Model: "a, b", ...

where a value with a comma, a colon or a line break is quoted as in JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from PIL.PngImagePlugin import PngInfo

from .. import __version__

GENERATED = "trainedAlgorithmicMedia"  # all of the picture
COMPOSITE = "compositeWithTrainedAlgorithmicMedia"  # part of a picture that was there before
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
CHUNK, TEXT_CHUNK, XMP_CHUNK = "mezzotint", "parameters", "XML:com.adobe.xmp"

NEGATIVE = "Negative prompt:"
LABELS = {  # of the last line, in the order in which they are written -> our name
    "Steps": "num_inference_steps",
    "Sampler": "sampler",
    "Schedule type": "grid",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Size": "size",
    "Model hash": "model_hash",
    "Model": "model",
    "Denoising strength": "strength",
    "Clip skip": "clip_skip",
    "Lora hashes": "lora_hashes",
    "RNG": "rng",
    "Version": "version",
}
TITLES = {  # our names -> those of other tools
    "ddim": "DDIM",
    "deis": "DEIS",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PLMS",
    "unipc": "UniPC",
    "beta": "Beta",
    "exponential": "Exponential",
    "karras": "Karras",
}
_NAMES = {title: name for name, title in TITLES.items()}
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LEAST_PAIRS = 3  # fewer, and the last line belongs to the prompt


def png_info(recipe: Mapping[str, Any], *, source: str = GENERATED) -> PngInfo:
    """The chunks that carry `recipe`, a JSON object; `source` is `GENERATED` or `COMPOSITE`."""
    chunks = PngInfo()
    chunks.add_text(TEXT_CHUNK, infotext(recipe))
    chunks.add_text(CHUNK, json.dumps(recipe, allow_nan=False))
    chunks.add_itxt(XMP_CHUNK, xmp(source))
    return chunks


def infotext(recipe: Mapping[str, Any]) -> str:
    """The recipe as text for other tools: the fields that they know, under the names by which they know them."""
    known = dict(recipe)
    if "width" in known and "height" in known:
        known["size"] = f"{known['width']}x{known['height']}"
    known = {
        "rng": "mezzotint",
        "version": f"mezzotint {__version__}",
    } | known  # without RNG, readers assume CUDA's
    pairs = [
        f"{label}: {_quoted(_shown(known[name]))}"
        for label, name in LABELS.items()
        if known.get(name) is not None
    ]
    lines = [
        " ".join([*filter(None, [str(known.get("prompt") or "")]), *map(_tag, known.get("loras") or ())])
    ]
    if known.get("negative_prompt"):
        lines.append(f"{NEGATIVE} {known['negative_prompt']}")
    # What is no text (half of a surrogate pair, from a command line) cannot be written.
    return "\n".join([*lines, ", ".join(pairs)]).encode("utf-8", "replace").decode()


def _tag(lora: Mapping[str, Any]) -> str:
    """A LoRA as other tools write it into the prompt: <lora:name:weight>, or with the text encoders' weight first."""
    weight, text = lora["weight"], lora.get("text_weight")
    both = [weight] if text in (None, weight) else [text, weight]
    return "<lora:" + ":".join([str(lora["name"]), *map(_shown, both)]) + ">"


def parse_infotext(text: str) -> dict[str, Any]:
    """The fields of such a text under our names; labels that we have no name for keep theirs, values as text."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _LEAST_PAIRS:
        lines, pairs = [*lines, last], []
    start = next((i for i, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).strip().removeprefix(NEGATIVE).strip()
    recipe: dict[str, Any] = {"prompt": "\n".join(lines[:start]).strip(), "negative_prompt": negative}
    for label, quoted in pairs:
        name, value = LABELS.get(label, label), _unquoted(quoted)
        if name == "size" and (size := re.fullmatch(r"(\d+)x(\d+)", value)):
            recipe |= {"width": int(size[1]), "height": int(size[2])}
        elif name in ("sampler", "grid"):
            recipe[name] = _NAMES.get(value, value)
        elif name in ("num_inference_steps", "seed", "clip_skip") and re.fullmatch(r"-?\d+", value):
            recipe[name] = int(value)
        elif name in ("guidance_scale", "strength") and re.fullmatch(r"-?\d+(\.\d*)?", value):
            recipe[name] = float(value)
        else:
            recipe[name] = value
    return recipe


def xmp(source: str) -> str:
    """An XMP packet with IPTC's digital source type and the program's name."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        f" Iptc4xmpExt:DigitalSourceType={quoteattr(SOURCE_TYPE + source)}"
        f" xmp:CreatorTool={quoteattr(f'mezzotint {__version__}')}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {each}" for key, each in value.items())
    text = TITLES.get(value, value) if isinstance(value, str) else repr(value)
    return text.removesuffix(".0") if isinstance(value, float) else text


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ',:\n"') else text


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text.strip()
    try:
        return str(json.loads(text))
    except ValueError:
        return text
