"""A Stable Diffusion small enough for tests: random weights, 16 x 16 pixels, twelve tokens."""

import json
from pathlib import Path

import torch

from mezzotint.diffusion.process import VariancePreserving
from mezzotint.formats.checkpoint import Checkpoint
from mezzotint.formats.folder import write_folder
from mezzotint.formats.scheduler import Plan
from mezzotint.formats.tokenizer import Tokenizer, train_bpe
from mezzotint.nets import AutoencoderKL, CLIPTextConfig, CLIPTextModel, UNet, UNetConfig, VAEConfig

LENGTH = 12
WIDTH = 24
STEPS = 4


def tiny_checkpoint(plan: Plan | None = None) -> Checkpoint:
    """The nets, always with the same weights."""
    torch.manual_seed(0)
    vocab, merges = train_bpe(["a red apple and two green cats"] * 3, 540)
    tokenizer = Tokenizer(vocab, merges, max_length=LENGTH)
    unet = UNetConfig(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )
    vae = VAEConfig(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
    )
    plan = plan or Plan(VariancePreserving(), "v_prediction", "dpmpp_2m", {}, "trailing", {})
    return Checkpoint(
        UNet(unet).eval(), AutoencoderKL(vae).eval(), CLIPTextModel(text).eval(), tokenizer, plan
    )


def write_tiny(folder: Path, checkpoint: Checkpoint | None = None) -> Path:
    """The folder of a tiny model, with defaults of its own."""
    card = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "license": "Apache-2.0"}
    write_folder(folder, checkpoint or tiny_checkpoint(), files={"mezzotint.json": json.dumps(card)})
    return folder
