"""The command line: files and lines for a right request, one line and a status for a wrong one."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mezzotint.cli import run
from mezzotint.formats.image import read_recipe
from mezzotint.request import flag
from mezzotint.tasks import TASKS
from tiny import STEPS, tiny_checkpoint, write_tiny

RED = ["generate", "a red apple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(folder, here, capsys):
    """Runs a command on the tiny model: (status, stdout, stderr)."""

    def run_it(*arguments, model=folder):
        arguments = [str(one) for one in arguments]
        if arguments[0] in ("generate", "film") and "-m" not in arguments:
            arguments += ["-m", str(model)]
        status = run(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return run_it


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def in_process(*arguments, **options):
    command = [sys.executable, "-c", "import mezzotint.cli; mezzotint.cli.main()", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, preexec_fn=heeds_interrupts, **pipes, **options)


def heeds_interrupts():
    """A shell that starts the tests in the background tells its children to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# --- what works ---


def test_generate(call, here):
    status, out, _ = call("generate", "a red apple", "Two green CATS!", "-n", "2", "--seed", "5", "-o", "p")
    assert status == 0
    names = ["a-red-apple-5", "a-red-apple-6", "two-green-cats-5", "two-green-cats-6"]
    assert out.split() == [f"p/{name}.png" for name in names]
    assert sorted(path.name for path in Path("p").iterdir()) == sorted(f"{name}.png" for name in names)
    recipe = read_recipe(Path("p/a-red-apple-6.png"))
    assert (recipe["prompt"], recipe["seed"], recipe["num_images"]) == ("a red apple", 6, 1)
    assert recipe["num_inference_steps"] == STEPS


def test_every_flag_of_a_request_arrives(call, here):
    given = {
        "num_images": ("-n", "1"),
        "seed": ("--seed", "9"),
        "num_inference_steps": ("--steps", "3"),
        "guidance_scale": ("--guidance", "2.5"),
        "guidance_start": ("--guidance-start", "0.2"),
        "guidance_end": ("--guidance-end", "0.9"),
        "guidance_rescale": ("--guidance-rescale", "0.5"),
        "negative_prompt": ("--negative", "cats"),
        "sampler": ("--sampler", "ddim"),
        "grid": ("--grid", "karras"),
        "eta": ("--eta", "0.5"),
        "aesthetic_score": ("--aesthetic", "7.0"),
        "clip_skip": ("--clip-skip", "1"),
    }
    files = {"loras", "embeddings", "mark"}  # see test_wardrobe and test_origin
    assert given.keys() | files == {name for name in TASKS["text2img"].fields if flag(name)}
    flags = [word for pair in given.values() for word in pair]
    assert call(*RED, *flags, "--size", "32x16", "-o", "a.png")[0] == 0
    recipe = read_recipe(Path("a.png"))
    assert (recipe["width"], recipe["height"]) == (32, 16)
    for name, (_, value) in given.items():
        assert str(recipe[name]) == value, name


def test_json_lines(call, here):
    status, out, err = call(*RED, "--json", "-o", "p", "-n", "2", "--seed", "1", "--together", "1")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert err == ""
    assert [line["event"] for line in lines] == (["step"] * STEPS + ["picture"]) * 2
    assert [line["seed"] for line in lines if line["event"] == "picture"] == [1, 2]
    assert all(Path(line["path"]).exists() for line in lines if line["event"] == "picture")


def test_an_existing_picture_is_not_touched(call, here):
    call(*RED, "--seed", "1", "-o", "p")
    call(*RED, "--seed", "1", "-o", "p")
    assert {path.name for path in Path("p").iterdir()} == {"a-red-apple-1.png", "a-red-apple-1-2.png"}
    assert call(*RED, "--seed", "1", "-o", "p", "--force")[1].split() == ["p/a-red-apple-1.png"]
    assert len(list(Path("p").iterdir())) == 2
    Path("a.png").write_text("mine")
    status, _, err = call(*RED, "-o", "a.png")
    assert (status, Path("a.png").read_text()) == (2, "mine")
    assert "a.png exists" in err
    assert call(*RED, "-o", "a.png", "-f")[0] == 0


def test_sheet_and_film(call, here):
    status, out, _ = call(*RED, "-n", "2", "-o", "p", "--sheet", "s.png", "--film", "f.gif")
    assert status == 0
    assert out.split()[-3:] == ["f.gif", "f.png", "s.png"]
    with Image.open("f.gif") as film:
        assert film.n_frames == STEPS
    assert pixels("s.png").shape[1] > 2 * 256


def test_replay(call, here, folder):
    call(*RED, "--seed", "4", "--sampler", "euler_ancestral", "-n", "2", "-o", "p")
    picture = "p/a-red-apple-5.png"
    status, out, _ = call("replay", picture, "-m", folder, "-o", "again.png")
    assert (status, out) == (0, f"{picture}: identical, all 768 values\n")
    assert np.array_equal(pixels(picture), pixels("again.png"))


def test_replay_finds_what_was_changed(call, here, folder, tmp_path):
    call(*RED, "--seed", "4", "-o", "a.png")
    recipe = read_recipe(Path("a.png"))
    from mezzotint.formats.image import save_image

    changed = pixels("a.png").copy()
    changed[0, 0] ^= 3
    save_image("b.png", Image.fromarray(changed), recipe)
    status, out, err = call("replay", "b.png", "-m", folder)
    assert (status, out) == (1, "")
    assert "b.png came out differently: 0.4% of the values, by at most 3 of 255" in err

    checkpoint = tiny_checkpoint()
    checkpoint.unet.conv_out.bias.data[0] += 1
    status, _, err = call("replay", "a.png", "-m", write_tiny(tmp_path / "other", checkpoint))
    assert status == 1
    assert re.search(r"a.png was made with the model 'tiny' \(\w{10}\); .*other is another one", err)
    status, _, err = call("replay", "a.png")
    assert "which is not here; give its folder with -m" in err

    Image.new("RGB", (8, 8)).save("plain.png")
    assert "plain.png carries no recipe" in call("replay", "plain.png")[2]


def test_film_of_a_picture_and_of_a_prompt(call, here):
    Image.new("RGBA", (40, 20), (200, 30, 30, 255)).save("photo.png")
    status, out, _ = call("film", "photo.png", "-o", "noise.gif", "--frames", "5")
    assert (status, out.split()) == (0, ["noise.gif", "noise.png"])
    with Image.open("noise.gif") as film:
        assert film.n_frames == 5
        first = np.asarray(film.convert("RGB")).astype(int)
        film.seek(4)
        last = np.asarray(film.convert("RGB")).astype(int)
    assert abs(first - last)[44:300, 20:276].mean() > 40  # the left panel became noise
    status, out, _ = call("film", "a red apple", "-o", "apple.gif", "--steps", "3", "--seed", "2")
    assert (status, out.split()) == (0, ["apple.gif", "apple.png"])


def test_info(call, folder, capsys):
    status, out, _ = call("info", folder, "--json")
    facts = json.loads(out)
    assert status == 0
    checkpoint = tiny_checkpoint()
    nets = (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder)
    assert facts["parameters"] == sum(p.numel() for net in nets for p in net.parameters())
    assert (facts["size"], facts["tokens"], facts["license"]) == ("16x16", 10, "Apache-2.0")
    assert facts["sampler"] == "dpmpp_2m"
    assert "prediction" in call("info", folder)[1]


def test_version(call):
    assert re.fullmatch(r"mezzotint \d+\.\d+\.\d+\n", call("--version")[1])


# --- what is wrong ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*RED, "--sampler", "eulr"], "unknown sampler 'eulr'; did you mean 'euler'?"),
        ([*RED, "--grid", "karas"], "unknown grid 'karas'; did you mean 'karras'?"),
        ([*RED, "-m", "nothere"], "unknown model 'nothere'"),
        ([*RED, "--size", "17x16"], "width 17 is not a multiple of 2; the nearest that is: 16"),
        ([*RED, "--size", "99999"], "width 99999 is not a multiple of 2"),
        ([*RED, "--size", "16x4096"], "height 4096 is too large"),
        ([*RED, "--size", "big"], "--size big: write it as WIDTHxHEIGHT"),
        ([*RED, "--steps", "0"], "num_inference_steps (--steps) is 0"),
        ([*RED, "--steps", "many"], "--steps"),
        ([*RED, "--guidance", "nan"], "guidance_scale (--guidance) is nan"),
        ([*RED, "--seed", "-1"], "seed (--seed) is -1"),
        ([*RED, "--samplr", "euler"], "--sampler"),
        ([*RED, "-o", "a.png", "-n", "2"], "names one picture"),
        ([*RED, "--film", "a.mp4"], "a.mp4: give a name that ends in .gif"),
        ([*RED, "--device", "tpu"], "device 'tpu' is not to be had"),
        (["generate", "apple " * 400], "the prompt has"),
        (["generate"], "PROMPT"),
        (["generat", "x"], "generat"),
        (["train", "missing.toml"], "missing.toml is missing"),
    ],
)
def test_wrong_requests(call, here, arguments, says):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert err.startswith("mezzotint: ")
    assert list(here.iterdir()) == []


def test_debug_shows_where_it_came_from(call, here):
    with pytest.raises(Exception, match="unknown sampler"):
        call(*RED, "--sampler", "eulr", "--debug")


def test_a_word_after_two_dashes_is_a_prompt(call, here, folder):
    status, out, _ = call("generate", "-m", folder, "-o", "p", "--seed", "1", "--", "--debug")
    assert (status, out) == (0, "p/debug-1.png\n")


def break_weights(model):
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def remove_weights(model):
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def garble_config(model):
    (model / "unet" / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (break_weights, "unet/diffusion_pytorch_model.safetensors"),
        (remove_weights, "vae"),
        (garble_config, "unet/config.json"),
    ],
)
def test_damaged_models(call, here, tmp_path_factory, damage, names):
    model = write_tiny(tmp_path_factory.mktemp("damaged") / "tiny")
    damage(model)
    status, out, err = call(*RED, model=model)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert names in err
    assert list(here.iterdir()) == []


def test_a_model_that_answers_with_nan(call, here, tmp_path_factory):
    checkpoint = tiny_checkpoint()
    checkpoint.unet.conv_out.bias.data[0] = float("nan")
    model = write_tiny(tmp_path_factory.mktemp("sick") / "tiny", checkpoint)
    status, out, err = call(*RED, model=model)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "not finite" in err
    assert not list(here.rglob("*.png"))


def test_a_full_disk(call, here, monkeypatch):
    def full(*given, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    status, out, err = call(*RED, "-o", "p")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "the disk is full" in err
    assert list(Path("p").iterdir()) == []


def test_places_that_cannot_be_written_to(call, here, monkeypatch):
    Path("file").write_text("")
    assert "file is not a folder; choose another place" in call(*RED, "-o", "file/p")[2]
    monkeypatch.setattr(os, "access", lambda *given, **more: False)
    status, _, err = call(*RED, "-o", "p")
    assert status == 1
    assert "may not be written to" in err


def test_pictures_that_are_none(call, here):
    Path("a.png").write_text("no picture")
    for command in ("film", "replay"):
        status, _, err = call(command, "a.png")
        assert (status, err.count("\n")) == (1, 1)
        assert "a.png is not a picture" in err


def test_a_picture_bomb(call, here):
    import struct
    import zlib

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    Path("bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
    )
    status, _, err = call("film", "bomb.png")
    assert (status, err.count("\n")) == (1, 1)
    assert "bomb.png has 60000 x 60000 pixels" in err or "too many pixels" in err


def test_a_mistake_of_ours_is_one_line_too(call, here, monkeypatch):
    monkeypatch.setattr("mezzotint.pipeline.to_image", lambda pixels: 1 / 0)
    status, _, err = call(*RED)
    assert (status, err.count("\n")) == (1, 1)
    assert "a mistake of ours: ZeroDivisionError" in err
    assert "--debug" in err


def test_interrupting_leaves_nothing_broken(folder, here):
    with in_process(*RED, "-m", folder, "--steps", "900", "-n", "50", "--json", "-o", "p") as process:
        assert json.loads(process.stdout.readline())["step"] == 1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "mezzotint: interrupted; nothing half-written was left\n"
    assert not Path("p").exists() or all(read_recipe(path) for path in Path("p").iterdir())


def test_whoever_stops_reading_is_no_error(folder, here):
    with in_process(*RED, "-m", folder, "--steps", "100", "-n", "9", "--json", "-o", "p") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


# --- what is not imported ---


def test_help_is_quick_and_imports_no_torch():
    script = (
        "import sys, time, mezzotint.cli\n"
        "mezzotint.cli.run(['generate', '--help'])\n"
        "print(time.process_time(), sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))\n"
    )
    seconds = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        spent, imported = done.stdout.splitlines()[-1].split(" ", 1)
        assert imported == "[]"
        seconds.append(float(spent))
    assert min(seconds) < 1.2  # of processor time, on a busy machine; 0.4 on a free one


def test_generate_imports_only_what_it_uses(folder, here):
    script = (
        "import sys, mezzotint.cli\n"
        f"assert mezzotint.cli.run(['generate', 'a red apple', '-m', {str(folder)!r}]) == 0\n"
        "heavy = {'diffusers', 'transformers', 'scipy', 'torchvision', 'sympy', 'torch._dynamo', 'requests',\n"
        "    'mezzotint.training', 'mezzotint.data', 'mezzotint.metrics', 'mezzotint.film'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
