"""`mezzotint convert`: a checkpoint from one form into another."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import Download, Force, Json, Model, Variant
from .show import Show


class Precision(StrEnum):
    """What weights may be stored as."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Prediction(StrEnum):
    """What a net of Stable Diffusion may predict."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"


class Dialect(StrEnum):
    """Forms of LoRA files."""

    diffusers = "diffusers"
    kohya = "kohya"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A model's name, its folder, or its single file; with --to a LoRA."
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="A name in .safetensors for a single file, else a folder.")
    ],
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Store weights so; as they are if not given.")
    ] = None,
    variant: Variant = None,
    prediction: Annotated[
        Prediction | None,
        typer.Option(help="What the net predicts, where a single file does not say it, or says it wrongly."),
    ] = None,
    lean: Annotated[
        bool, typer.Option("--lean", help="Leave out what a single file holds and no component uses.")
    ] = False,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", help="Also take weights out of .ckpt and .bin; no code of such a file is run."
        ),
    ] = False,
    to: Annotated[
        Dialect | None,
        typer.Option("--to", help="SRC is a LoRA: write it for diffusers and PEFT, or for kohya's readers."),
    ] = None,
    model: Model = "emoji",
    download: Download = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn a diffusers folder into a single file or back, halve its precision, or write a LoRA (made for --model) in
    another dialect; there and back, the bytes of every tensor are the same."""
    from dataclasses import replace

    from ..catalog import find_model
    from ..formats.kinds import title
    from ..formats.opened import read_parts, write_parts
    from ..formats.tensors import DTYPES, PICKLED

    show = Show(as_json)
    if to is not None:
        _lora(Path(source), target, find_model(model, download=download), to, precision, force)
        show.result(str(target), path=str(target), kind="LoRA", left_out=0)
        return
    path = find_model(source, download=download)
    if allow_pickle and path.suffix in PICKLED and (kind := _extra(path, target, precision, force)):
        show.result(str(target), path=str(target), kind=kind, left_out=0)
        return
    parts = read_parts(path, variant=variant, prediction=prediction, allow_pickle=allow_pickle)
    left_out = len(parts.rest) if lean else 0
    if lean:
        parts = replace(parts, rest={})
    write_parts(target, parts, dtype=DTYPES[precision] if precision else None, replace=force)
    show.note(
        f"{title(parts.configs)}"
        + f"; {left_out} tensors that no component uses were left out" * (left_out > 0)
    )
    show.result(str(target), path=str(target), kind=title(parts.configs), left_out=left_out)


def _lora(
    path: Path, target: Path, model: Path, to: Dialect, precision: Precision | None, force: bool
) -> None:
    """Writes a LoRA in the dialect `to`; of the model only the names and shapes of layers are looked at."""
    import torch

    from ..errors import UsageError
    from ..formats.lora import aliases, read_lora, write_lora
    from ..formats.native import is_native
    from ..formats.opened import configs_at
    from ..formats.tensors import DTYPES
    from ..nets import CLIPTextModel, UNet

    if target.suffix != ".safetensors":
        raise UsageError(f"{target}: a LoRA is one file; give a name in .safetensors")
    if is_native(model):
        raise UsageError(
            f"{model}: LoRA files are for models in Stable Diffusion's layout; name one with --model"
        )
    configs = configs_at(model)
    with torch.device("meta"):  # shapes without numbers
        unet = UNet(configs.unet)
        texts = {name: CLIPTextModel(config) for name, config in configs.encoders.items()}
    lora = read_lora(path, {"unet": unet, **texts}, aliases=aliases(unet))
    dtype = DTYPES[precision] if precision else None
    write_lora(
        target, lora, dialect="kohya" if to is Dialect.kohya else "diffusers", dtype=dtype, replace=force
    )


def _extra(path: Path, target: Path, precision: Precision | None, force: bool) -> str | None:
    """Writes a pickled LoRA or embedding as safetensors; what it was, None if neither."""
    from ..errors import UsageError
    from ..formats.embedding import NAMELESS, OLD_NAMELESS, is_embedding
    from ..formats.lora import is_lora
    from ..formats.pickled import read_pickled
    from ..formats.tensors import DTYPES, write_tensors

    tensors = read_pickled(path)
    kind = "LoRA" if is_lora(tensors) else "embedding" if is_embedding(tensors) else None
    if kind is None:
        return None
    if target.suffix != ".safetensors":
        raise UsageError(f"{target}: a LoRA or an embedding is one file; give a name in .safetensors")
    named = {NAMELESS if name == OLD_NAMELESS else name: tensor for name, tensor in tensors.items()}
    write_tensors(target, named, dtype=DTYPES[precision] if precision else None, replace=force)
    return kind
