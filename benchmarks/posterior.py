"""How true are inpainted samples? Against Gaussian mixtures, whose conditional distributions are known.

    python benchmarks/posterior.py [--samples 6000] [--json out.json]

Draws x0 from a mixture, keeps some of its numbers, has each method draw the rest with the mixture's perfect denoiser,
and asks a classifier to tell (kept, drawn) from true samples: 0.5 is indistinguishable. All methods have the same
number of evaluations; a way back through the denoiser counts as one. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from conditional import BUDGET, METHODS, PROBLEMS, conditional  # noqa: E402
from mezzotint.metrics.two_sample import two_sample_accuracy  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = {"true samples (floor)": {}, **{name: {} for name in METHODS}}
    for title, (target, known) in PROBLEMS.items():
        x0, true = (target.sample(asked.samples, torch.Generator().manual_seed(seed)) for seed in (1, 2))
        rows["true samples (floor)"][title] = two_sample_accuracy(x0, true)
        for name, method in METHODS.items():
            drawn, evaluations = conditional(target, x0, known, method)
            assert evaluations <= BUDGET, (name, evaluations)
            rows[name][title] = two_sample_accuracy(drawn, true)
    print(f"| {BUDGET} evaluations | " + " | ".join(PROBLEMS) + " |")
    print("|---" * (1 + len(PROBLEMS)) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[title]:.3f}" for title in PROBLEMS) + " |")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
