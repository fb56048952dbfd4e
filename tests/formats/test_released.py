"""The released models at full size, on tensors without memory: keys, shapes and configurations as published.

The configurations are those of the released folders (SD 1.5, SD 2.1, SDXL 1.0, its refiner); the numbers of parameters
and the keys below are those of the released single files.
"""

import math

import diffusers
import pytest
import torch
import transformers

from mezzotint.diffusion.process import VariancePreserving
from mezzotint.diffusion.types import Cond
from mezzotint.formats.checkpoint import Configs
from mezzotint.formats.kinds import FAMILIES, configs_of, family_of, plan_of, title
from mezzotint.formats.names import from_single, to_single
from mezzotint.formats.single import _configs
from mezzotint.nets import AutoencoderKL, CLIPTextConfig, CLIPTextModel, UNet, UNetConfig, VAEConfig

ATTENTION3 = ("CrossAttnDownBlock2D",) * 3
SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SD2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "sample_size": 64,
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
REFINER = SDXL | {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
OPEN_H = CLIP_L | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
OPEN_G = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projected": True,
}
RELEASED = {  # kind -> (U-Net, text encoders, parameters of the U-Net)
    "sd1": (SD1, [CLIP_L], 859_520_964),
    "sd1-inpaint": (SD1 | {"in_channels": 9}, [CLIP_L], 859_535_364),
    "sd2": (SD2, [OPEN_H], 865_910_724),
    "sd2-v": (SD2 | {"sample_size": 96, "upcast_attention": True}, [OPEN_H], 865_910_724),
    "sd2-inpaint": (SD2 | {"in_channels": 9}, [OPEN_H], 865_925_124),
    "sdxl": (SDXL, [CLIP_L, OPEN_G], 2_567_463_684),
    "sdxl-inpaint": (SDXL | {"in_channels": 9}, [CLIP_L, OPEN_G], 2_567_478_084),
    "sdxl-refiner": (
        REFINER,
        [OPEN_G],
        2_259_526_660,
    ),  # not published; with the rest in half precision 6.08 GB, as its file has
}
KEYS = {  # of the released single files, with their shapes
    "sd1": {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.post_quant_conv.weight": (4, 4, 1, 1),
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight": (768, 3072),
    },
    "sd2": {
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320),
        "cond_stage_model.model.positional_embedding": (77, 1024),
        "cond_stage_model.model.token_embedding.weight": (49408, 1024),
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        "cond_stage_model.model.transformer.resblocks.22.mlp.c_proj.weight": (1024, 4096),
        "cond_stage_model.model.ln_final.weight": (1024,),
    },
    "sdxl": {
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "model.diffusion_model.middle_block.1.transformer_blocks.9.norm3.weight": (1280,),
        "model.diffusion_model.output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
    },
    "sdxl-refiner": {
        "model.diffusion_model.label_emb.0.0.weight": (1536, 2560),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.3.attn2.to_k.weight": (768, 1280),
        "conditioner.embedders.0.model.transformer.resblocks.31.mlp.c_proj.bias": (1280,),
    },
}


def released(kind):
    unet, texts, _ = RELEASED[kind]
    family = "sdxl-refiner" if kind == "sdxl-refiner" else kind.partition("-")[0]
    plan = FAMILIES[family].plan
    scaling = 0.13025 if family.startswith("sdxl") else 0.18215
    encoders = [CLIPTextConfig(**text) for text in texts]
    configs = UNetConfig(**unet), VAEConfig(**VAE, scaling_factor=scaling)
    return family, Configs(*configs, encoders[0], plan, {}, encoders[1] if len(encoders) > 1 else None)


def single(family, configs):
    """The tensors of a single file of that kind, without memory."""
    nets = {"unet": UNet(configs.unet), "vae": AutoencoderKL(configs.vae)}
    nets |= {name: CLIPTextModel(config) for name, config in configs.encoders.items()}
    prefixes = {"unet": "model.diffusion_model.", "vae": "first_stage_model."} | FAMILIES[family].encoders
    tensors = {}
    for part, config in _configs(configs).items():
        named = to_single(nets[part].state_dict(), config, open_clip=prefixes[part].endswith(".model."))
        tensors |= {prefixes[part] + name: tensor for name, tensor in named.items()}
    return nets, prefixes, tensors


@pytest.mark.parametrize("kind", RELEASED)
def test_released_kind(kind, tmp_path):
    family, configs = released(kind)
    with torch.device("meta"):
        nets, prefixes, tensors = single(family, configs)
    assert sum(p.numel() for p in nets["unet"].parameters()) == RELEASED[kind][2]
    for name, shape in KEYS.get(kind, {}).items():
        assert tuple(tensors[name].shape) == shape, name
    assert family_of(tensors, kind) == family
    theirs = {
        part: {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for part, prefix in prefixes.items()
    }
    marks = {"v_pred": torch.zeros(0)} if kind == "sd2-v" else {}
    plan = plan_of(
        family,
        tensors | marks,
        {},
        tmp_path / "x.safetensors",
        None if family != "sd2" or marks else "epsilon",
    )
    found = configs_of(family, theirs, plan, kind)
    assert found.unet == configs.unet
    assert (found.vae.block_out_channels, found.vae.scaling_factor) == (
        VAE["block_out_channels"],
        configs.vae.scaling_factor,
    )
    assert found.encoders == configs.encoders
    assert title(found).startswith(FAMILIES[family].title)
    for part, config in _configs(found).items():
        ours, spare = from_single(theirs[part], config)
        assert not spare
        expected = nets[part].state_dict()
        assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in expected.items()}


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_diffusers_has_the_same_keys(kind):
    """An independent program's nets at these configurations, and its own reading of our single file's names."""
    family, configs = released(kind)
    with torch.device("meta"):
        nets, _, tensors = single(family, configs)
        theirs = {
            "unet": diffusers.UNet2DConditionModel.from_config(configs.unet.to_dict()),
            "vae": diffusers.AutoencoderKL.from_config(configs.vae.to_dict()),
        }
    for name, net in theirs.items():
        ours, expected = nets[name].state_dict(), net.state_dict()
        assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in expected.items()}
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    read = {
        "unet": convert_ldm_unet_checkpoint(dict(tensors), config=configs.unet.to_dict()),
        "vae": convert_ldm_vae_checkpoint(dict(tensors), config=configs.vae.to_dict()),
    }
    for name, named in read.items():
        expected = theirs[name].state_dict()
        assert {k: t.shape for k, t in named.items()} == {k: t.shape for k, t in expected.items()}


@pytest.mark.slow
@torch.inference_mode()
def test_a_step_at_full_size():
    """SD 1.5's U-Net with random weights on a small picture: diffusers and ours agree to 1e-4."""
    from mezzotint.formats.tensors import build

    _, configs = released("sd1")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel.from_config(configs.unet.to_dict()).eval()
    for weight in theirs.parameters():
        if weight.ndim == 1:
            weight.add_(0.1 * torch.randn_like(weight))
    ours = build(lambda: UNet(configs.unet), theirs.state_dict(), where="memory")
    z, text, t = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768), torch.tensor([981, 21])
    expected = theirs(z, t, text).sample
    torch.testing.assert_close(ours(z, t, Cond(text=text)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_text_encoder_at_full_size():
    """CLIP-L as Stable Diffusion 1 has it, on the ids that its tokenizer gives."""
    from mezzotint.formats.clip_tokenizer import clip_tokenizer
    from mezzotint.formats.names import text_today
    from mezzotint.formats.tensors import build

    config = CLIPTextConfig(**CLIP_L)
    torch.manual_seed(0)
    raw = {key: value for key, value in config.to_dict().items() if key != "architectures"}
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**raw)).eval()
    ours = build(lambda: CLIPTextModel(config), text_today(theirs.state_dict()), where="memory")
    ids = clip_tokenizer().batch(["a photograph of an astronaut riding a horse", ""]).ids
    torch.testing.assert_close(ours(ids).last, theirs(ids).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_how_an_average_was_made_is_passed_over():
    left = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 37000, "power": 0.67}
    assert UNetConfig.from_dict(
        SDXL | left | {"update_after_step": 0, "use_ema_warmup": False}
    ) == UNetConfig(**SDXL)


def test_schedule_of_released_models():
    process = VariancePreserving()
    assert math.isclose(process.sigma_min, 0.0292, abs_tol=1e-4)
    assert math.isclose(process.sigma_max, 14.6146, abs_tol=1e-3)
