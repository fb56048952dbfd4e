"""The three recipes of docs/training.md, from pictures to a figure and a table of scores.

    python benchmarks/recipes.py cifar10 --cifar cifar10-train.tar.gz
    python benchmarks/recipes.py lora
    python benchmarks/recipes.py consistency
        [--minutes 8] [--emoji runs/emoji/data] [--judge runs/emoji/judge.safetensors] [--docs docs] [--small]

Each goes on where it was stopped. `--minutes` cuts the training to what fits, by a short measurement; `--small` takes a
few steps, to see that it works. Figures go to docs/training/, tables between their marks in docs/training.md. Without
the judge (`make evaluate` trains it), names are not judged.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from mezzotint.data.captions import PALETTE, single, with_article  # noqa: E402
from mezzotint.data.scenes import EmojiScenes, load_scenes  # noqa: E402
from mezzotint.formats.sheet import contact_sheet  # noqa: E402
from mezzotint.metrics.intervals import Interval, mean, share  # noqa: E402
from mezzotint.metrics.judge import Judge  # noqa: E402
from mezzotint.metrics.kernel import features, kernel_distance  # noqa: E402
from mezzotint.pipeline import Pipeline  # noqa: E402
from mezzotint.training.config import TrainConfig, read_config  # noqa: E402
from mezzotint.training.history import read_history  # noqa: E402
from mezzotint.training.rebuild import Averages, best  # noqa: E402
from mezzotint.training.watch import run  # noqa: E402

RUNS = Path("runs")
MEASURED = 12  # steps of the short measurement
THING, HAT, CAT = "zorple", "top hat", "cat face"
SCENES = 3072  # that the consistency recipe is tuned on
FEW, MANY = (1, 2, 4), 20


@dataclass(frozen=True)
class Asked:
    """What the command line said."""

    emoji: Path
    judge: Path
    docs: Path
    cifar: Path
    minutes: float
    small: bool

    @property
    def questions(self) -> int:
        """Pictures of a score."""
        return 16 if self.small else 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", choices=["cifar10", "lora", "consistency"])
    parser.add_argument("--emoji", type=Path, default=RUNS / "emoji" / "data")
    parser.add_argument("--judge", type=Path, default=RUNS / "emoji" / "judge.safetensors")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--cifar", type=Path, default=Path("cifar10-train.tar.gz"))
    parser.add_argument("--minutes", type=float, default=0, help="of training at most; 0: as configured")
    parser.add_argument("--small", action="store_true")
    told = vars(parser.parse_args())
    recipe = {"cifar10": cifar10, "lora": lora, "consistency": consistency}[told.pop("recipe")]
    torch.manual_seed(0)
    recipe(Asked(**told))


def cifar10(asked: Asked) -> None:
    """A class-conditional model of pixels, from nothing."""
    data = RUNS / "cifar10"
    if not (data / "train").exists():
        with tarfile.open(asked.cifar) as archive:
            archive.extractall(data, filter="data")
    settings, minutes = trained(asked, "configs/cifar10-quick.toml")
    averages = Averages(settings.out, device=settings.run.device)
    looks = list(averages.looks())
    chosen = best(looks)
    averages.export(chosen, settings.out / "model-ema")
    pipe = Pipeline.load(settings.out / "model-ema", device="cpu")
    classes = pipe.encoder.classes  # type: ignore[union-attr]
    drawn = [pipe(name, seed=seed)[0] for seed in range(1 if asked.small else 6) for name in classes]
    larger = [picture.resize((96, 96), Image.Resampling.NEAREST) for picture in drawn]
    figure(asked, "cifar10", contact_sheet(larger, classes, columns=len(classes), lines=1))
    rows = [
        ("Pictures seen", f"{settings.optim.steps * settings.optim.batch:,}"),
        ("Minutes", f"{minutes:.1f}"),
        ("Held-out loss, best average", f"{chosen.loss:.4f} (relative length {chosen.length:g})"),
    ]
    for entry in read_history(settings.out).scores[-1:]:
        far = entry["score"]
        rows += [
            ("Distance to held-out pictures", f"{far['value']:.3g} ({far['low']:.3g} to {far['high']:.3g})"),
            ("The same of pictures trained on", f"{far['floor']:.3g}"),
        ]
    table(asked, "cifar10", ("What", "Measured"), rows)


def lora(asked: Asked) -> None:
    """Five pictures of a thing that the embedded model does not know."""
    scenes = load_scenes(asked.emoji)
    folder = RUNS / "lora" / "pictures"
    five = new_thing(scenes, folder)
    pipe = Pipeline.load("emoji", device="cpu")
    settings, minutes = trained(asked, "configs/lora.toml", [f'data="{folder}"', out_of(pipe, RUNS / "lora")])
    worn = str(settings.out / "lora" / "lora.safetensors")
    prompts = [
        f"a {THING}",
        f"a {THING} on a purple background",  # of which it has seen none
        f"a small {THING} in the top left corner",
        f"a {THING} to the left of a red apple",
        "a cat face",
        "a red apple",
    ]
    bare, dressed = ([pipe(p, seed=1, loras=use)[0] for p in prompts] for use in ((), (worn,)))
    given = [Image.fromarray(picture) for picture in five]
    cells = [*given, Image.new("RGB", given[0].size, "white"), *bare, *dressed]
    labels = [f"given {i + 1}" for i in range(5)] + [""] + [f"before: {p}" for p in prompts]
    figure(
        asked, "lora", contact_sheet(cells, labels + [f"after: {p}" for p in prompts], columns=len(prompts))
    )
    judge = referee(asked, scenes)
    rows = []
    for name, use in (("before", ()), ("after", (worn,))):
        made = tensor([pipe(prompts[0], seed=seed, loras=use)[0] for seed in range(asked.questions // 2)])
        near = nearness(judge, made, tensor(five))
        known = asked_names(pipe, scenes, judge, asked.questions, loras=use)
        rows.append((name, near.plain(3), known.percent() if known else "not judged"))
    rows.append(
        ("training", f"{minutes:.1f} minutes", f"{settings.optim.steps} steps of {settings.optim.batch}")
    )
    about = "cosine of the judge's features" if judge else "cosine of random features"
    head = ("", f"“a {THING}”: nearness to the nearest of the five ({about})", "other names found among five")
    table(asked, "lora", head, rows)


def consistency(asked: Asked) -> None:
    """The embedded model in two steps."""
    scenes = load_scenes(asked.emoji)
    folder = RUNS / "emoji" / "scenes"
    write_scenes(scenes, folder, 64 if asked.small else SCENES)
    before = Pipeline.load("emoji", device="cpu")
    overrides = [f'data="{folder}"', out_of(before, RUNS / "emoji" / "few-steps")]
    settings, minutes = trained(asked, "configs/consistency.toml", overrides)
    after = Pipeline.load(settings.out / "consistency", device="cpu")
    ways = [("as it was", before, n) for n in (*FEW, MANY)] + [("tuned", after, n) for n in FEW]
    prompts = [
        "a red apple",
        "a dog face",
        "a slice of pizza",
        "a sunflower on a blue background",
        "an owl on a yellow background",
        "a rocket on a navy background",
    ]
    cells = [pipe(p, seed=1, num_inference_steps=steps)[0] for p in prompts for _, pipe, steps in ways]
    labels = [f"{name}, {steps} step{'s' * (steps > 1)}" for name, _, steps in ways]
    for prompt in prompts[1:]:
        labels += [prompt, *[""] * (len(ways) - 1)]
    figure(asked, "consistency", contact_sheet(cells, labels, columns=len(ways)))
    judge = referee(asked, scenes)
    rows = []
    for name, pipe, steps in ways:
        begun = time.process_time()
        made, true, things = drawn_names(pipe, scenes, asked.questions, num_inference_steps=steps)
        seconds = (time.process_time() - begun) / len(made)
        far = kernel_distance(features(true), features(made))
        found = share(judge.found(made, things, 5)) if judge else None
        told = found.percent() if found else "not judged"
        rows.append((f"{name}, {steps}", far.plain(3), told, f"{seconds:.2f}"))
    rows.append((f"tuning: {minutes:.1f} minutes", "", "", ""))
    head = (
        "Steps",
        "distance to true pictures",
        "name among the five nearest",
        "processor seconds a picture",
    )
    table(asked, "consistency", head, rows)


def trained(asked: Asked, path: str, overrides: Sequence[str] = ()) -> tuple[TrainConfig, float]:
    """The configuration as it was trained, and the minutes that it took here."""
    more = list(overrides)
    if asked.small:
        more += [
            "optim.steps=24",
            "optim.batch=4",
            "optim.warmup=2",
            "run.snapshots=4",
            "run.validate_every=12",
        ]
        more += ["run.pictures=12", 'run.precision="float32"']
        more += [f'out="{RUNS / "small" / Path(path).stem}"']
    settings = read_config(Path(path), more)
    if asked.minutes:
        with closing(run(settings)) as short:  # nothing of it is kept but what is computed once
            seconds = [now.stats.seconds for now in islice(short, MEASURED)]
        if seconds:
            steps = int(0.85 * asked.minutes * 60 / seconds[-1])
            print(f"{seconds[-1]:.2f} s a step: {steps} steps fit", flush=True)
            settings = read_config(
                Path(path), [*more, f"optim.steps={min(settings.optim.steps, max(50, steps))}"]
            )
    begun = time.perf_counter()
    for now in run(settings):
        for note in now.stats.notes:
            print(note, flush=True)
        if now.stats.step % 50 == 0:
            left = now.seconds_left / 60
            print(
                f"step {now.stats.step} of {now.steps}: loss {now.stats.loss:.4f}, {left:.1f} minutes left",
                flush=True,
            )
    steps = read_history(settings.out).steps
    spent = (time.perf_counter() - begun) / 60
    resumed = sum(e["seconds"] for e in steps) / len(steps) * settings.optim.steps / 60  # of all sessions
    return settings, max(spent, resumed)


def out_of(pipe: Pipeline, folder: Path) -> str:
    """A run's folder of its own for each embedded model, so that a new one is not taken for the old."""
    return f'out="{folder / pipe.fingerprint[:8]}"'


def new_thing(scenes: EmojiScenes, folder: Path) -> list[np.ndarray]:
    """A green cat in a top hat, on five grounds; written with captions, and as uint8 [128, 128, 3]."""
    by_name = {thing.name: scenes.glyphs[thing.index] for thing in scenes.things}
    whole = Image.new("RGBA", (128, 128))
    cat = by_name[CAT].resize((100, 100), Image.Resampling.LANCZOS)
    hue, saturation, value = cat.convert("RGB").convert("HSV").split()
    green = Image.merge("HSV", (hue.point(lambda h: (h + 70) % 256), saturation, value)).convert("RGB")
    green.putalpha(cat.getchannel("A"))
    whole.alpha_composite(green, (14, 28))
    whole.alpha_composite(by_name[HAT].resize((64, 64), Image.Resampling.LANCZOS), (32, 0))
    grounds = ["", "blue", "pink", "", "yellow"]
    sides = [1.0, 0.9, 0.9, 0.45, 1.0]
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i, (ground, side) in enumerate(zip(grounds, sides, strict=True)):
        picture = Image.new("RGB", (128, 128), PALETTE[ground] if ground else "white")
        small = whole.resize((round(128 * side),) * 2, Image.Resampling.LANCZOS)
        left = (128 - small.width) // 2
        picture.paste(small, (left, 128 - small.height if side < 0.5 else left), small)
        said = "a small " if side < 0.5 else "a "
        said += (
            THING
            + (" at the bottom" if side < 0.5 else "")
            + (f" on a {ground} background" if ground else "")
        )
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(said + "\n")
        made.append(np.asarray(picture))
    return made


def write_scenes(scenes: EmojiScenes, folder: Path, count: int) -> None:
    """Captioned scenes as a folder of pictures; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        if not (folder / f"{i:05d}.txt").exists():
            scene = scenes.scene(7, i, plain=0.6, pairs=0.15)
            Image.fromarray(scenes.picture(scene)).save(folder / f"{i:05d}.png", compress_level=1)
            (folder / f"{i:05d}.txt").write_text(scene.caption + "\n")


def referee(asked: Asked, scenes: EmojiScenes) -> Judge | None:
    """The judge, where it has been trained."""
    if not asked.judge.exists():
        return None
    return Judge.load(asked.judge, scenes.glyphs[: len(scenes.things)])


def drawn_names(
    pipe: Pipeline, scenes: EmojiScenes, count: int, **fields: Any
) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Pictures of names drawn at random, the true ones, uint8 [n, 3, 128, 128], and which things they are of."""
    rng = np.random.default_rng(5)
    things = [scenes.things[int(i)] for i in rng.permutation(len(scenes.things))[:count]]
    made = tensor([pipe(with_article(t.name), seed=100 + i, **fields)[0] for i, t in enumerate(things)])
    true = tensor([scenes.picture(single(t, t.name, rng=rng)) for t in things])
    return made, true, [[t.index] for t in things]


def asked_names(
    pipe: Pipeline, scenes: EmojiScenes, judge: Judge | None, count: int, **fields: Any
) -> Interval | None:
    """The share of names that are drawn so that the judge finds them among the five nearest."""
    if judge is None:
        return None
    made, _, things = drawn_names(pipe, scenes, count, **fields)
    return share(judge.found(made, things, 5))


def nearness(judge: Judge | None, made: torch.Tensor, given: torch.Tensor) -> Interval:
    """The mean cosine of pictures to the nearest of those given."""
    said, wanted = (judge.embed(x) if judge else features(x) for x in (made, given))
    said, wanted = (torch.nn.functional.normalize(x, dim=1) for x in (said, wanted))
    return mean((said @ wanted.T).max(1).values.tolist())


def tensor(pictures: Sequence[Any]) -> torch.Tensor:
    """uint8 [n, 3, H, W]."""
    return torch.stack([torch.from_numpy(np.array(p)[..., :3]).permute(2, 0, 1) for p in pictures])


def figure(asked: Asked, name: str, picture: Image.Image) -> None:
    path = asked.docs / "training" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    print(path, flush=True)


def table(asked: Asked, name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, and put it between its marks in docs/training.md."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    print("\n".join(lines), flush=True)
    page = asked.docs / "training.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"<!-- {name} -->\n<!-- /{name} -->\n"
    between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    body = "\n" + "\n".join(lines) + "\n\n"
    page.write_text(between.sub(lambda m: m[1] + body + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
