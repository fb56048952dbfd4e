"""The page of a run: what is on it, that it stands alone, and the axes of its charts."""

import itertools
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from PIL import Image
from test_denoising import NET, config, places  # noqa: F401 - a fixture

from mezzotint.cli import run as command
from mezzotint.training.chart import Axis, Curve, chart, short, smooth, together
from mezzotint.training.history import read_history
from mezzotint.training.report import grids, write_report
from mezzotint.training.watch import run


def numbers(svg, tag, key):
    root = ET.fromstring(svg)
    return [float(e.get(key)) for e in root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


def test_points_stand_where_the_axes_say():
    svg = chart("t", [Curve("a", [(0, 0.0), (5, 1.0), (10, 2.0)], "#000", dots=True)])
    xs, ys = numbers(svg, "circle", "cx"), numbers(svg, "circle", "cy")
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.1)
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2, abs=0.1)
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    decades = chart("t", [Curve("a", [(0, 0.01), (1, 0.1), (2, 1.0), (3, 10.0)], "#000", dots=True)])
    heights = numbers(decades, "circle", "cy")
    gaps = [a - b for a, b in itertools.pairwise(heights)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)  # a wide span is logarithmic
    assert "nothing yet" in chart("t", [Curve("a", [(0, float("nan"))], "#000")])
    assert "&lt;b&gt;" in chart("<b>", [Curve("<i>", [(0, 1)], "#000")])
    ET.fromstring(together([("a", [Curve("", [(0, 1), (1, 2)], "#000")])] * 3))


def test_ticks_are_round_and_within():
    assert Axis(0, 10, 0, 100).ticks() == [0, 2, 4, 6, 8, 10]
    assert Axis(0.1234, 0.1834, 0, 100).ticks() == pytest.approx([0.14, 0.16, 0.18])
    assert Axis(0.05, 30, 0, 100, log=True).ticks()[0] >= 0.05
    assert {0.1, 1.0, 10.0} <= set(Axis(0.05, 30, 0, 100, log=True).ticks())
    assert [short(v) for v in (0.005, 1500, 25_000, 3e6)] == ["0.005", "1500", "25k", "3M"]
    flat = smooth([(x, x % 2) for x in range(200)], 0.1)
    assert all(abs(y - 0.5) < 0.06 for _, y in flat)


class Page(HTMLParser):
    """What a page fetches, and how often each tag stands on it."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [
            v for k, v in attrs if k in ("src", "href") and not v.startswith("data:image/webp;base64,")
        ]


def test_a_run_ends_with_a_page_that_stands_alone(places, tmp_path, capsys):  # noqa: F811
    settings = config(
        tmp_path, places / "classes", {"condition": "class"}, net=NET, optim={"steps": 5}, run={"log": 1}
    )
    for _ in run(settings):
        pass
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert "script" not in page.tags
    assert page.tags.count("img") == len(grids(tmp_path)) == 3  # steps 2 and 4, and the end
    for title in (
        "Loss",
        "Held-out loss by noise level",
        "Learning rate",
        "Gradient norm",
        "Pictures a second",
    ):
        assert f">{title}" in text
    assert command(["train", "report", str(tmp_path), "-o", str(tmp_path / "other.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'other.html'}\n"
    assert (tmp_path / "other.html").read_text() == text
    card = (tmp_path / "model" / "README.md").read_text()
    assert "![Samples](samples.png)" in card
    assert "Of `blue`, `green`, `red`." in card
    with Image.open(tmp_path / "model" / "samples.png") as samples:
        assert samples.size == (64, 48)
    ET.fromstring((tmp_path / "model" / "curves.svg").read_text())


def test_what_went_wrong_is_told(tmp_path, capsys):
    lines = [
        {"step": s, "loss": 1 / s, "parts": {}, "lr": 1e-3, "grad_norm": 1.0, "seconds": 0.1, "wait": 0.01}
        for s in range(1, 6)
    ]
    lines[2]["notes"] = ["step 3 was skipped: the loss of '<net>' is nan"]
    lines[4]["loss"] = float("nan")
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, [*lines, lines[1] | {"loss": 0.75}])) + '\n{"step": 6, "lo')
    history = read_history(tmp_path)
    assert history.skipped == [3]
    assert [e["loss"] for e in history.steps[:3]] == [1.0, 0.75, 1 / 3]
    assert command(["train", "report", str(tmp_path)]) != 0
    assert "config.json is missing" in capsys.readouterr().err
    settings = config(tmp_path, "data", {"condition": "class"}).model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    text = write_report(tmp_path).read_text()
    assert "step 3 was skipped: the loss of &#x27;&lt;net&gt;&#x27; is nan" in text
    assert "<b>1</b><span>steps skipped" in text
    log.unlink()
    assert command(["train", "report", str(tmp_path)]) == 2
    assert "has logged no step yet" in capsys.readouterr().err
