"""From a few pictures of a thing to a name for it: the configuration that learns it, and where the result lies.

`lora` changes the denoiser a little (Hu et al. 2021, arXiv 2106.09685) and hears the name in captions; `embedding`
leaves the model as it is and learns the name alone (textual inversion, Gal et al. 2022, arXiv 2208.01618). The pictures
are copied beside the run, in a folder that is named after what is in them: a run that was stopped goes on from the same
ones, and others begin another run.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..data.captions import with_article
from ..errors import UsageError
from ..formats.atomic import new_file
from ..formats.image import flatten, open_image
from . import adapters, words
from .config import TrainConfig

Way = Literal["lora", "embedding"]
MOST = 100  # pictures; three to five are what both papers took
RESULTS: dict[Way, str] = {"lora": adapters.FILE, "embedding": words.FILE}
SETTINGS: dict[Way, dict[str, Any]] = {
    "lora": {
        "optim": {"steps": 300, "batch": 4, "lr": 1e-3, "warmup": 20, "ema": 0.98},
        "dataset": {"dropout": 0.05},
        "lora": {"rank": 8, "alpha": 8.0, "unet": ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")},
    },
    "embedding": {
        "optim": {"steps": 400, "batch": 4, "lr": 2e-2, "warmup": 20, "ema": 0.95},
        "dataset": {"dropout": 0.0, "crop": "random"},
        "embedding": {"vectors": 4, "templates": ("{}", "a {}", "the {}", "a small {}", "a large {}")},
    },
}


@dataclass(frozen=True)
class Custom:
    """One thing, its name and its files, below the folder `out`."""

    name: str
    pictures: tuple[Image.Image, ...]
    out: Path
    way: Way = "lora"

    @property
    def slug(self) -> str:
        """The name as a file's."""
        return "-".join(re.findall(r"\w+", self.name.lower()))

    @property
    def file(self) -> Path:
        """What is worn."""
        return self.out / f"{self.slug}.safetensors"

    @property
    def work(self) -> Path:
        """The pictures, and the run."""
        digest = hashlib.sha256(b"".join(image.tobytes() for image in self.pictures)).hexdigest()[:8]
        return self.out / f"{self.slug}-{self.way}-{digest}"

    @property
    def example(self) -> str:
        """How it is used."""
        prompt = with_article(self.name)
        said = f"{prompt} <lora:{self.slug}:1>" if self.way == "lora" else prompt
        worn = "" if self.way == "lora" else f" --embedding {self.slug}"
        return f'mezzotint generate "{said}"{worn} --lora-dir {self.out}'

    def config(self, model: str, resolution: int, *, steps: int | None = None, seed: int = 0) -> TrainConfig:
        """The run that learns it from the pictures, which `gather` lays down."""
        prompt = with_article(self.name)
        sections: dict[str, Any] = {name: dict(section) for name, section in SETTINGS[self.way].items()}
        sections["optim"] |= {"steps": steps} if steps else {}
        square = {"resolution": resolution, "aspect": 1.0, "held_out": 0.0, "flip": True}
        sections["dataset"] |= {"caption": prompt, **square}
        if self.way == "embedding":
            sections["embedding"]["word"] = self.name
        every = max(1, min(100, sections["optim"]["steps"]))
        return TrainConfig.model_validate(
            {
                "stage": self.way,
                "data": self.work / "pictures",
                "out": self.work / "run",
                "seed": seed,
                "model": {"start": model, "weight": "simple", "prompts": (prompt,)},
                "run": {"pictures": every, "checkpoint": every},
                **sections,
            }
        )

    def gather(self) -> None:
        """Lay the pictures down for the run."""
        for i, picture in enumerate(self.pictures):
            with new_file(self.work / "pictures" / f"{i:03}.png", replace=True) as part:
                picture.save(part, "PNG")

    def take(self, config: TrainConfig) -> Path:
        """What the run has learned, as `file`, over what was there."""
        learned = config.out / config.stage / RESULTS[self.way]
        if not learned.exists():  # a word for two text encoders, see `words.py`
            learned = learned.with_name(f"{words.file_name(self.name)}.safetensors")
        with new_file(self.file, replace=True) as part:
            shutil.copyfile(learned, part)
        return self.file


def custom(pictures: Sequence[Path | str], name: str, out: Path, way: Way = "lora") -> Custom:
    """Pictures of a thing and what it is to be called.

    Raises UsageError for a name without a letter, for no pictures or too many, MezzotintError for one that cannot be
    read.
    """
    name = " ".join(name.split())
    if not re.search(r"\w", name):
        raise UsageError(f"--name '{name}' has no letters; give what the thing is to be called")
    if not 1 <= len(pictures) <= MOST:
        raise UsageError(
            f"customise takes 1 to {MOST} pictures, three to five are usual; {len(pictures)} were given"
        )
    return Custom(name, tuple(flatten(open_image(path)) for path in pictures), out, way)
