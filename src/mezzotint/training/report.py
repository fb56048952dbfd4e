"""A run as one page: curves, grids of samples over time, what went wrong, settings; one file, nothing is fetched.

Everything is read from what the run wrote, so that a page of a run that is under way, or was killed, is as good as
that of one that ended.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from .. import __version__
from ..data.remote import shown
from ..errors import UsageError
from ..formats.atomic import write_file
from .chart import Curve, chart, ramp, smooth
from .config import TrainConfig, read_run
from .history import History, mean_loss, read_history

GRIDS = 8  # of samples that are shown
LARGEST = 640  # pixels of a grid's longer side
NOTES = 60
OURS, OTHER, THIRD = "#9c3a20", "#2563ab", "#6b7f2a"

STYLE = """
:root { --ground:#faf8f4; --sheet:#fff; --ink:#26241f; --soft:#615c52; --line:#d8d2c6; color-scheme:light dark;
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif }
@media (prefers-color-scheme:dark) { :root { --ground:#191816; --sheet:#23211e; --ink:#ece7dd; --soft:#b3ab9c;
  --line:#46423b } }
body { margin:0 auto; max-width:62rem; padding:1rem; background:var(--ground); color:var(--ink) }
h1 { font-size:1.4rem; margin:.2rem 0 } h2 { font-size:1.1rem; margin:1.6rem 0 .6rem } p { margin:.3rem 0 }
.facts, .charts, .grids { display:flex; flex-wrap:wrap; gap:.8rem }
.facts div, .charts svg, figure { background:var(--sheet); border:1px solid var(--line); border-radius:.5rem }
.facts div { padding:.4rem .9rem } .facts b { display:block; font-size:1.15rem }
.facts span, figcaption, .soft { color:var(--soft); font-size:.85rem }
.charts svg { max-width:100%; height:auto } figure { margin:0; padding:.5rem }
figure:not(:first-child) { max-width:30% }
figure img { display:block; max-width:100% }
table { border-collapse:collapse } td { padding:.15rem .8rem .15rem 0; vertical-align:top }
pre { overflow:auto; background:var(--sheet); border:1px solid var(--line); border-radius:.5rem; padding:.8rem }
"""


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, to `RUN/report.html` if not told where. UsageError if it took no step yet."""
    config, history = read_run(run), read_history(run)
    if not history.steps:
        raise UsageError(f"{run} has logged no step yet; a report needs one")
    path = out or run / "report.html"
    write_file(path, page(config, history, grids(run)), replace=True)
    return path


def page(config: TrainConfig, history: History, pictures: Sequence[tuple[int, Path]]) -> str:
    """The page as HTML; `pictures`: (step, sample grid)."""
    last = history.steps[-1]["step"]
    data = shown(config.data)
    settings = config.model_dump(mode="json", exclude={"out"}, exclude_defaults=True) | {"data": data}
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(config.out.name)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(config.out.name)}</h1>",
            f'<p class="soft">stage {config.stage}, step {last:,} of {config.optim.steps:,}, data: '
            f"{escape(Path(data).name)}, seed {config.seed}; mezzotint {__version__}</p>",
            f'<div class="facts">{_facts(config, history)}</div>',
            f'<h2>Curves</h2><div class="charts">{"".join(charts(config, history))}</div>',
            _grids(pictures),
            _notes(history),
            f"<h2>Settings</h2><pre>{escape(json.dumps(settings, indent=2))}</pre></body></html>\n",
        )
    )


def charts(config: TrainConfig, history: History) -> list[str]:
    """All curves, each as SVG."""
    looks, skipped = history.looks, history.skipped
    made = [
        chart(title, curves, marks=skipped if title == "Loss" else ()) for title, curves in losses(history)
    ]
    if looks:
        made += [_levels(history)]
        if any(
            len(losses) > 1 for losses in looks[-1]["validation"].values()
        ):  # an autoencoder has one level
            made += [_last_levels(history)]
        gap = [(e["step"], ratio) for e in looks if (ratio := _gap(e)) is not None]
        if gap:
            made += [chart("Held out over trained on", [Curve("", gap, OURS, dots=True)], log=False)]
    if history.scores:
        made += [_scores(history)]
    rate = [(e["step"], config.optim.batch / e["seconds"]) for e in history.steps if e["seconds"] > 0]
    waited = [(e["step"], 100 * e["wait"] / e["seconds"]) for e in history.steps if e["seconds"] > 0]
    return [
        *made,
        chart("Learning rate", [Curve("", _of(history, "lr"), OURS)], log=False, zero=True),
        chart(
            "Gradient norm, steps skipped in red",
            [
                Curve("", _of(history, "grad_norm"), OURS, faint=True),
                Curve("", smooth(_of(history, "grad_norm")), OURS),
            ],
            marks=skipped,
        ),
        chart("Pictures a second", [Curve("", rate, OURS)], log=False, zero=True),
        chart("Waiting for data, % of a step", [Curve("", waited, OURS)], log=False, zero=True),
    ]


def losses(history: History) -> list[tuple[str, list[Curve]]]:
    """Loss in training and on held-out pictures, and its parts: (title, curves)."""
    loss = _of(history, "loss")
    curves = [Curve("", loss, OURS, faint=True), Curve("training", smooth(loss), OURS)]
    for side, name, colour in (("held_out", "held out", OTHER), ("train", "trained on", THIRD)):
        points = [
            (e["step"], m) for e in history.looks if (m := mean_loss(e["validation"][side])) is not None
        ]
        curves += [Curve(name, points, colour, dots=True)] if points else []
    names = list(dict.fromkeys(name for e in history.steps for name in e.get("parts", {})))
    parts = {n: [(e["step"], e["parts"][n]) for e in history.steps if n in e.get("parts", {})] for n in names}
    colours = {name: ramp(i / max(1, len(names) - 1)) for i, name in enumerate(names)}
    found = [("Loss", curves)]
    if parts:
        found += [("Its parts in training", [Curve(n, smooth(parts[n]), colours[n]) for n in names])]
    return found


def grids(run: Path) -> list[tuple[int, Path]]:
    """(step, picture) of some sample grids of a run, spread over it."""
    found = [(int(p.stem), p) for p in sorted((run / "pictures").glob("*.png")) if p.stem.isdigit()]
    if len(found) <= GRIDS:
        return found
    return [found[i * (len(found) - 1) // (GRIDS - 1)] for i in range(GRIDS)]


def _facts(config: TrainConfig, history: History) -> str:
    steps = history.steps
    seconds = sorted(e["seconds"] for e in steps)[len(steps) // 2]
    recent = [e["loss"] for e in steps[-10:]]
    facts = [(f"{sum(recent) / len(recent):.4f}", "training loss, last lines")]
    if history.looks:
        last = history.looks[-1]
        held = mean_loss(last["validation"]["held_out"])
        facts += [(f"{held:.4f}", "held-out loss")] if held is not None else []
        gap = _gap(last)
        facts += [(f"{gap:.3f}", "held out over trained on")] if gap is not None else []
    if history.scores:
        score = history.scores[-1]["score"]
        facts += [
            (f"{score['value']:.4g} ({score['low']:.3g} to {score['high']:.3g})", "distance of samples")
        ]
    facts += [(f"{config.optim.batch / seconds:.1f}", "pictures a second")]
    facts += [(str(len(history.skipped)), "steps skipped")]
    return "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)


def _levels(history: History) -> str:
    """Loss over steps, a line for each noise level."""
    side = "held_out" if history.looks[-1]["validation"]["held_out"] else "train"
    sigmas = sorted({s for e in history.looks for s in e["validation"][side]}, key=float)
    curves = []
    for i, sigma in enumerate(sigmas):
        points = [
            (e["step"], e["validation"][side][sigma]) for e in history.looks if sigma in e["validation"][side]
        ]
        shown = f"{float(sigma):.2g}" if i in (0, len(sigmas) // 2, len(sigmas) - 1) else ""
        curves += [Curve(shown and f"sigma {shown}", points, ramp(i / max(1, len(sigmas) - 1)))]
    return chart("Held-out loss by noise level" if side == "held_out" else "Loss by noise level", curves)


def _last_levels(history: History) -> str:
    """Loss over noise levels, as it is now."""
    last = history.looks[-1]["validation"]
    curves = [
        Curve(name, sorted((float(s), v) for s, v in last[side].items()), colour, dots=True)
        for side, name, colour in (("held_out", "held out", OTHER), ("train", "trained on", THIRD))
        if last[side]
    ]
    return chart("Loss by noise level now", curves, x="noise level sigma", log_x=True)


def _scores(history: History) -> str:
    entries = [(e["step"], e["score"]) for e in history.scores]
    band = [(step, s["low"], s["high"]) for step, s in entries]
    curve = Curve("samples", [(step, s["value"]) for step, s in entries], OURS, dots=True, band=band)
    floor = [(step, s["floor"]) for step, s in entries if "floor" in s]
    more = [Curve("pictures trained on", floor, THIRD)] if floor else []
    return chart("Distance to held-out pictures", [curve, *more], log=False)


def _grids(pictures: Sequence[tuple[int, Path]]) -> str:
    if not pictures:
        return ""
    shown = [
        f'<figure><img alt="samples after step {step}" src="{_inline(path)}">'
        f"<figcaption>step {step:,}</figcaption></figure>"
        for step, path in reversed(pictures)
    ]
    return f'<h2>Samples, the newest first</h2><div class="grids">{"".join(shown)}</div>'


def _inline(path: Path) -> str:
    """A picture as a data URL, no larger than need be."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        held = io.BytesIO()
        picture.save(held, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(held.getvalue()).decode()


def _notes(history: History) -> str:
    if not history.notes:
        return ""
    rows = [f"<tr><td>{step:,}</td><td>{escape(note)}</td></tr>" for step, note in history.notes[-NOTES:]]
    left = len(history.notes) - len(rows)
    more = f'<p class="soft">and {left} before them</p>' if left > 0 else ""
    return f"<h2>What happened besides</h2><table>{''.join(rows)}</table>{more}"


def _of(history: History, key: str) -> list[tuple[float, float]]:
    return [(e["step"], e[key]) for e in history.steps if isinstance(e.get(key), int | float)]


def _gap(look: dict[str, Any]) -> float | None:
    held, train = (mean_loss(look["validation"][side]) for side in ("held_out", "train"))
    return held / train if held is not None and train else None
