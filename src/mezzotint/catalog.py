"""Which model: by name or by path, what it is known by, and what it draws with if nothing else is asked for.

A model is a diffusers folder or a single file: one that ships with us, one at a path, or one that a Hugging Face
program has brought into its cache. A file `mezzotint.json` in a folder may say more than that format can: steps,
guidance, a licence. Other programs pass over it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from .errors import MezzotintError, unknown
from .formats import hub
from .formats.atomic import read_json
from .formats.folder import CARD
from .formats.scheduler import Plan
from .formats.single import read_card
from .formats.tensors import read_metadata
from .nets import BackboneConfig

EMBEDDED = Path(__file__).parent / "models"
COMPONENTS = (
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "transformer",
    "unet",
    "vae",
)


class Scaled(Protocol):
    """An autoencoder's configuration, or a codec."""

    @property
    def factor(self) -> int:
        """How many times smaller than pictures the maps are that diffusion works on."""


@dataclass(frozen=True)
class Defaults:
    """What a request is settled with where it leaves something open; `license` is for people."""

    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = "dpmpp_2m"
    grid: str = "trailing"
    width: int = 512
    height: int = 512
    license: str = ""

    def fields(self) -> dict[str, Any]:
        """Those that are fields of a request."""
        return {name: value for name, value in asdict(self).items() if name != "license"}


def embedded() -> list[str]:
    """The names of the models that this installation carries."""
    return sorted(path.parent.name for path in EMBEDDED.glob("*/model_index.json"))


def find_model(model: str | Path, *, download: bool = False, revision: str = "main") -> Path:
    """The folder or the file of an embedded model's name, of a path, or of a name on the Hugging Face Hub.

    Of the last, what lies in the local cache; only with `download`, and the package huggingface_hub, is it fetched.
    Raises UsageError if there is none of these.
    """
    if str(model) in embedded():
        return EMBEDDED / str(model)
    path = Path(model).expanduser()
    if path.exists():
        return path.resolve()
    if hub.is_repository(str(model)):
        return hub.find(str(model), revision=revision, download=download)
    if path.parent != Path():  # it was meant as a path
        raise MezzotintError(
            f"{path}: there is no such folder or file; give the path of a diffusers folder or of a .safetensors file"
        )
    raise unknown(
        "model", str(model), [*embedded(), "or the path of a diffusers folder or .safetensors file"]
    )


def model_name(path: Path) -> str:
    """What a found model is called in recipes: its folder's or its file's name, or its name on the Hub."""
    return hub.repository_of(path) or (path.stem if path.is_file() else path.name)


def read_defaults(folder: Path, unet: BackboneConfig, scaled: Scaled, plan: Plan) -> Defaults:
    """What the folder's own files say, and over them its `mezzotint.json`.

    Raises MezzotintError for a key in that file that is unknown or of the wrong type.
    """
    size = unet.sample_size or 64
    height, width = size if isinstance(size, tuple) else (size, size)
    said: dict[str, Any] = {
        "sampler": plan.sampler,
        "grid": plan.grid,
        "width": width * scaled.factor,
        "height": height * scaled.factor,
    }
    return Defaults(**said | _card(folder))


def _card(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        path, card = folder, read_card(read_metadata(folder), str(folder))
    elif (folder / CARD).exists():
        path, card = folder / CARD, read_json(folder / CARD)
    else:
        return {}
    known = {each.name: type(each.default) for each in fields(Defaults)}
    for key, value in card.items():
        if key not in known:
            raise MezzotintError(f"{path}: {unknown('key', key, known)}")
        fits = (int, float) if known[key] is float else known[key]
        if not isinstance(value, fits) or isinstance(value, bool):
            raise MezzotintError(f"{path}: '{key}' is {value!r}, expected {known[key].__name__}")
    return card


def content_hash(folder: Path) -> str:
    """SHA-256 over the names and the bytes of the components' files: the same for copies, whatever their card says.

    Of a single file it is that of its bytes, which other programs know it by too.
    """
    if folder.is_file():
        with folder.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for path in sorted(path for part in COMPONENTS for path in (folder / part).rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
