"""`mezzotint evaluate`: how well a model of emoji draws what it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .options import Device, Json
from .show import Show

if TYPE_CHECKING:
    from torch import Tensor

    from ..metrics.edits import Edit
    from ..metrics.evaluate import Generate, Reconstruct
    from ..metrics.run import Stream
    from ..pipeline import Pipeline


def evaluate(
    data: Annotated[
        Path, typer.Option(help="The emoji it was trained on: what `mezzotint data emoji` wrote.")
    ],
    judge: Annotated[Path, typer.Option(help="The judge (.safetensors); trained first if it is not there.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the report.")],
    model: Annotated[
        str, typer.Argument(help="The name of an embedded model, or a diffusers folder.")
    ] = "emoji",
    config: Annotated[
        Path, typer.Option(help="The configuration it was trained with: which scenes it has seen.")
    ] = Path("configs/emoji.toml"),
    device: Device = "auto",
    share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Ask this share of the questions: quicker, wider intervals."),
    ] = 1.0,
    judge_steps: Annotated[int, typer.Option(min=1, help="Steps of the judge's training.")] = 1000,
    edits: Annotated[
        bool, typer.Option("--edits", help="Measure editing instead: inpaint, rewrite, restyle, outpaint.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure names, unknown words, colours, scenes, copying and reconstruction, each with its interval."""
    from ..metrics.edits import EditsConfig
    from ..metrics.evaluate import EvaluationConfig, Section
    from ..metrics.judge_training import JudgeTraining
    from ..metrics.run import run, run_edits
    from ..pipeline import Pipeline

    show = Show(as_json)
    pipeline = Pipeline.load(model, device=device)
    training = JudgeTraining(steps=judge_steps)
    about = {"model": pipeline.name, "model_hash": pipeline.fingerprint}
    common: dict[str, Any] = {"stream": _seen(config), "training": training, "about": about}
    if edits:
        sizes = EditsConfig().scaled(share)
        events = run_edits(_edits(pipeline), data, judge, out, config=sizes, **common)
    else:
        asked, again = EvaluationConfig().scaled(share), _reconstructs(pipeline)
        events = run(_draws(pipeline), data, judge, out, reconstruct=again, config=asked, **common)
    first, count = ("g", 5) if edits else ("a", 6)
    with show.bar() as progress:
        task = progress.add_task("judge", total=training.steps, note="")
        for event in events:
            if not isinstance(event, Section):
                progress.update(task, completed=event.step, note=f"accuracy {event.accuracy:.0%}")
                continue
            progress.update(
                task, description="sections", completed=ord(event.letter) - ord(first) + 1, total=count
            )
            figures = {figure.name: figure.interval.to_dict() for figure in event.figures}
            told = ", ".join(f"{name} {value['value']:.4g}" for name, value in figures.items())
            show.note(f"({event.letter}) {event.title}: {told}")
            show.event(event="section", letter=event.letter, title=event.title, figures=figures)
    show.result(str(out / "evaluation.md"), event="report", path=str(out / "evaluation.md"))


def _seen(config: Path) -> Stream:
    """The scenes that training with a configuration composes: whole pools, as many as it begins."""
    from ..metrics.run import Stream
    from ..training.config import read_config

    run = read_config(config)
    if run.diffusion is None:
        raise UsageError(
            f"{config} trains no diffusion model; give the configuration of that stage with --config"
        )
    pool = run.diffusion.pool
    pools = -(-run.optim.steps * run.optim.batch // (pool * run.diffusion.reuse))
    return Stream(run.seed, pools * pool, run.diffusion.plain, run.diffusion.pairs)


def _draws(pipeline: Pipeline) -> Generate:
    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        import torch

        from ..formats.image import to_tensor
        from ..prompt import escape

        made = [pipeline(escape(p), seed=seed)[0] for p, seed in zip(prompts, seeds, strict=True)]
        return torch.stack([_bytes(to_tensor(image)) for image in made])

    return draw


def _edits(pipeline: Pipeline) -> Edit:
    def edit(fields: Mapping[str, Any]) -> Tensor:
        from ..formats.image import to_tensor
        from ..pipeline import Picture
        from ..prompt import escape
        from ..request import Request

        texts = {name: escape(fields[name]) for name in ("prompt", "source_prompt") if name in fields}
        events = pipeline.generate(Request.parse({**fields, **texts}))
        [image] = [event.image for event in events if isinstance(event, Picture)]
        return _bytes(to_tensor(image))

    return edit


def _reconstructs(pipeline: Pipeline) -> Reconstruct:
    def reconstruct(pictures: Tensor) -> Tensor:
        import torch

        with torch.inference_mode():
            z = pipeline.codec.encode(pictures.to(pipeline.device).float() / 127.5 - 1)
            return _bytes(pipeline.codec.decode(z).cpu())

    return reconstruct


def _bytes(pictures: Tensor) -> Tensor:
    """[-1, 1] -> uint8."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte()
