"""What a model can wear: LoRAs with their weights, and words that were learnt, as fields of a request.

In text a LoRA is `name:0.8`, or `name:0.5:0.8` for the text encoders and the rest apart; a name, or a path to a
safetensors file. A recipe also has the SHA-256 of the file's bytes, so that whoever makes the picture again wears the
same, or hears that it is another one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from .errors import UsageError, unknown

_WEIGHTS = re.compile(r"(?P<name>.+?):(?P<first>[+-]?[\d.]+)(?::(?P<second>[+-]?[\d.]+))?")
FOLDERS = "MEZZOTINT_MODELS"  # the environment variable: folders of LoRAs and embeddings, joined as in PATH
SHELVES = {
    "LoRA": ("loras", "lora", "Lora"),
    "embedding": ("embeddings",),
}  # their own folders inside of these
ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt", ".pth", ".pkl")  # those of files, pickled ones among them


def is_path(name: str) -> bool:
    """Whether a LoRA or an embedding is given by path, not by name."""
    return "/" in name or os.sep in name or name.lower().endswith(ENDINGS)


class Extra(BaseModel):
    """A file by name or path, and what its bytes are known by."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1, description="its name, or the path of its file")
    sha256: str | None = Field(None, description="of the file that is meant; told, not asked for")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any, info: ValidationInfo) -> Any:
        """From text too; but a path means something only to whoever may open files here (see `Request.parse`)."""
        fields = cls._spelled(given) if isinstance(given, str) else given
        name = fields.get("name") if isinstance(fields, Mapping) else None
        if isinstance(name, str) and is_path(name) and not (info.context or {}).get("files", True):
            raise UsageError(f"'{name}' is a path; a request gives the name of a file that the service has")
        return fields

    @classmethod
    def _spelled(cls, text: str) -> dict[str, Any]:
        return {"name": text}

    @property
    def title(self) -> str:
        """What to call it wherever its file lies."""
        return Path(self.name).stem if is_path(self.name) else self.name


class LoraUse(Extra):
    """A LoRA and how much of it."""

    weight: float = Field(1.0, ge=-100, le=100, description="how much of it; 0 is nothing")
    text_weight: float | None = Field(
        None, ge=-100, le=100, description="how much of it in the text encoders; as weight if not given"
    )

    @classmethod
    def _spelled(cls, text: str) -> dict[str, Any]:
        """`name`, `name:weight`, `name:text weight:weight`."""
        match = _WEIGHTS.fullmatch(text)
        if match is None:
            return {"name": text}
        if match["second"] is None:
            return {"name": match["name"], "weight": match["first"]}
        return {"name": match["name"], "text_weight": match["first"], "weight": match["second"]}

    @property
    def weights(self) -> tuple[float, float]:
        """(of the denoiser, of the text encoders)."""
        return self.weight, self.weight if self.text_weight is None else self.text_weight


class EmbeddingUse(Extra):
    """Words that were learnt."""


# --- where their files lie ---


def find_extra(kind: str, name: str, folders: Iterable[Path] = ()) -> Path:
    """The file of a LoRA or an embedding (`kind`: a key of `SHELVES`), by path or by name.

    A name is that of a safetensors file, with or without its ending, in one of the `folders`, then in those of the
    environment variable `FOLDERS`, or in such a folder's own folder for the kind. Raises UsageError if there is none.
    """
    if is_path(name):
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        raise UsageError(f"{kind} {path}: there is no such file")
    known = extra_files(kind, folders)
    if name in known:
        return known[name]
    if known:
        raise unknown(kind, name, known)
    raise UsageError(
        f"unknown {kind} '{name}': no folder is known to look in; give its path, its folder with --lora-dir, or set "
        f"{FOLDERS}"
    )


def extra_files(kind: str, folders: Iterable[Path] = ()) -> dict[str, Path]:
    """The names that `find_extra` knows, and their files, whatever is in them."""
    return {path.stem: path for path in reversed(list(_extras(kind, folders)))}


def extra_names(kind: str, folders: Iterable[Path] = ()) -> list[str]:
    """The names that `find_extra` knows."""
    return sorted(extra_files(kind, folders))


def _extras(kind: str, folders: Iterable[Path]) -> Iterator[Path]:
    listed = [Path(one) for one in os.environ.get(FOLDERS, "").split(os.pathsep) if one]
    for folder in (*folders, *listed):
        for place in (folder.expanduser(), *(folder.expanduser() / shelf for shelf in SHELVES[kind])):
            yield from sorted(place.glob("*.safetensors"))
