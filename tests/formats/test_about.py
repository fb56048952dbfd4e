"""What a file of changes or of words says of itself, without the model it is for."""

import hashlib
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mezzotint.cli import run
from mezzotint.diffusion.process import Flow
from mezzotint.formats.about import about
from mezzotint.formats.embedding import Embedding, write_embedding
from mezzotint.formats.lora import Lora, short_hash, write_lora
from mezzotint.formats.native import NativeModel, write_native
from mezzotint.formats.scheduler import Plan
from mezzotint.nets.lowrank import LowRank
from tiny import tiny_checkpoint, write_tiny

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def lora(*, dora=False):
    return Lora(
        {
            "unet": {
                f"{BLOCK}.attn2.to_k": LowRank(
                    torch.zeros(4, 768),
                    torch.zeros(320, 4),
                    alpha=2.0,
                    magnitude=torch.ones(320, 1) if dora else None,
                ),
                f"{BLOCK}.attn1.to_out.0": LowRank(torch.zeros(8, 320), torch.zeros(320, 8), alpha=8.0),
                "conv_in": LowRank(torch.zeros(4, 4, 3, 3), torch.zeros(320, 4, 1, 1), alpha=2.0),
            },
            "text_encoder": {
                "text_model.encoder.layers.0.mlp.fc1": LowRank(
                    torch.zeros(4, 768), torch.zeros(3072, 4), alpha=2.0
                )
            },
        },
        {"ss_base_model_version": "sd_v1", "ss_output_name": "ink\nwell"},
    )


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_a_lora(tmp_path, dialect):
    path = tmp_path / "ink.safetensors"
    write_lora(path, lora(dora=True), dialect=dialect, dtype=torch.float16)
    facts = about(path)
    assert (facts["model"], facts["dialect"], facts["made_for"]) == ("ink", dialect, "Stable Diffusion 1")
    assert facts["kind"] == ["LoRA", "LoCon", "DoRA"]
    assert facts["rank"] == [4, 8]
    assert facts["alpha"] == ([2.0, 8.0] if dialect == "kohya" else "not told")
    assert facts["targets"] == {"unet": 3, "text_encoder": 1}
    assert facts["layers"] == {"to_k": 1, "to_out.0": 1, "conv_in": 1, "fc1": 1}
    assert facts["precision"] == ["float16"]
    count = (
        4 * (768 + 320) + 8 * 640 + 4 * (36 + 320) + 4 * (768 + 3072) + 320 + (4 if dialect == "kohya" else 0)
    )
    assert facts["parameters"] == count
    assert facts["megabytes"] == round(count * 2 / 1e6, 3)
    assert (facts["trained_on"], facts["output_name"]) == ("sd_v1", "ink well")


def test_other_kinds(tmp_path):
    for kind, rank, parts in (
        ("LoHa", 3, {f"hada_w{i}_{end}": (8, 3) if end == "a" else (3, 8) for i in (1, 2) for end in "ab"}),
        ("LoKr", 2, {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)}),
        ("LoKr", 0, {"lokr_w1": (2, 2), "lokr_w2": (4, 4)}),
        ("OFT", 4, {"oft_blocks": (2, 4, 4)}),
    ):
        path = tmp_path / "a.safetensors"
        save_file(
            {f"lora_te2_text_model_x_q_proj.{role}": torch.zeros(size) for role, size in parts.items()}, path
        )
        facts = about(path)
        assert (facts["kind"], facts["rank"], facts["targets"]) == ([kind], [rank], {"text_encoder_2": 1})


def test_words(tmp_path):
    write_embedding(tmp_path / "a.safetensors", Embedding("thing", {"": torch.zeros(3, 768)}))
    facts = about(tmp_path / "a.safetensors")
    assert (facts["words"], facts["made_for"], facts["width"]) == ({"thing": 3}, "Stable Diffusion 1", [768])
    pair = {"text_encoder": torch.zeros(2, 768), "text_encoder_2": torch.zeros(2, 1280)}
    write_embedding(tmp_path / "b.safetensors", Embedding("b", pair))
    facts = about(tmp_path / "b.safetensors")
    assert (facts["words"], facts["made_for"], facts["width"]) == ({"b": 2}, "SDXL", [768, 1280])


def test_the_hash_by_which_others_know_a_lora(tmp_path):
    write_lora(tmp_path / "a.safetensors", lora(), dialect="kohya")
    data = (tmp_path / "a.safetensors").read_bytes()
    weights = data[8 + int.from_bytes(data[:8], "little") :]
    assert short_hash(tmp_path / "a.safetensors") == hashlib.sha256(weights).hexdigest()[:12]
    said = Lora(lora().layers, {"sshs_model_hash": "ab" * 32})
    write_lora(tmp_path / "b.safetensors", said, dialect="kohya")
    assert short_hash(tmp_path / "b.safetensors") == "ab" * 6


def test_command_line(tmp_path, capsys):
    write_lora(tmp_path / "ink.safetensors", lora(), dialect="kohya")
    assert run(["info", str(tmp_path / "ink.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rank"], len(facts["hash"])) == ([4, 8], 64)
    assert run(["info", str(tmp_path / "ink.safetensors")]) == 0
    assert "3 unet, 1 text_encoder" in capsys.readouterr().out
    folder = write_tiny(tmp_path / "tiny")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").replace(tmp_path / "net.safetensors")
    assert run(["info", str(tmp_path / "net.safetensors")]) == 1  # the net of a model is neither


def test_a_folder_of_our_own(tmp_path, capsys):
    made = tiny_checkpoint()
    plan = Plan(Flow(), "flow", "euler", {}, "flow", {})
    write_native(tmp_path / "own", NativeModel(made.unet, plan, made.vae, made.text_encoder, made.tokenizer))
    assert run(["info", str(tmp_path / "own"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    nets = (made.unet, made.vae, made.text_encoder)
    assert facts["parameters"] == sum(p.numel() for net in nets for p in net.parameters())
    assert (facts["form"], facts["size"], facts["tokens"]) == ("a mezzotint folder", "16x16", 10)
    assert (facts["prediction"], facts["sampler"], facts["grid"]) == ("flow", "euler", "flow")
    assert facts["noise_schedule"].startswith("Flow, sigma ")
    assert run(["info", str(tmp_path / "own")]) == 0
    Image.new("RGB", (16, 16), (200, 30, 30)).save(tmp_path / "photo.png")
    film = [
        "film",
        str(tmp_path / "photo.png"),
        "-m",
        str(tmp_path / "own"),
        "-o",
        str(tmp_path / "noise.gif"),
    ]
    assert run([*film, "--frames", "3"]) == 0
