"""Small checkpoints of every kind, made by diffusers and transformers themselves: the oracle's own random weights."""

import json

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from mezzotint.formats.tokenizer import Tokenizer, train_bpe, write_tokenizer

LENGTH = 12
SD_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
PNDM = PNDMScheduler(**SD_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False)
DDIM = DDIMScheduler(**SD_SCHEDULE, clip_sample=False, set_alpha_to_one=False)
DDIM_V = DDIMScheduler(
    **SD_SCHEDULE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
)
EULER = EulerDiscreteScheduler(**SD_SCHEDULE, timestep_spacing="leading")


def unet(width, *, linear=False, channels_in=4, levels=("CrossAttnDownBlock2D", "DownBlock2D"), **config):
    up = [name.replace("Down", "Up") for name in reversed(levels)]
    widths = [64, 128, 128][: len(levels)]
    heads = {"attention_head_dim": [c // 64 for c in widths] if linear else 8}
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels_in,
        block_out_channels=widths,
        down_block_types=levels,
        up_block_types=up,
        layers_per_block=1,
        cross_attention_dim=width,
        use_linear_projection=linear,
        **heads,
        **config,
    )


def vae(scaling):
    return AutoencoderKL(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=2,
        sample_size=16,
        scaling_factor=scaling,
    )


def text(tokenizer, width, *, layers, act="quick_gelu", projected=False):
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=LENGTH,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config)


def tokenizers(folder):
    """CLIP's, which pads with the end, and OpenCLIP's, which pads with the first letter."""
    vocab, merges = train_bpe(["a red apple and two green cats"] * 3, 540)
    made = []
    for name, special in (("first", {}), ("second", {"pad_token": "!"})):
        write_tokenizer(folder / name, Tokenizer(vocab, merges, max_length=LENGTH, special=special))
        made.append(transformers.CLIPTokenizer.from_pretrained(folder / name))
    return made


def make(kind, folder):
    """A pipeline of diffusers with random weights that are not all alike."""
    torch.manual_seed(0)
    clip, open_clip = tokenizers(folder)
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    inpaint = kind.endswith("inpaint")
    channels = 9 if inpaint else 4
    if kind.startswith("sd1"):
        parts = {
            "unet": unet(64, channels_in=channels),
            "vae": vae(0.18215),
            "text_encoder": text(clip, 64, layers=2),
            "tokenizer": clip,
            "scheduler": PNDM,
        }
        pipeline = (StableDiffusionInpaintPipeline if inpaint else StableDiffusionPipeline)(**parts, **none)
    elif kind.startswith("sd2"):
        parts = {
            "unet": unet(64, linear=True, channels_in=channels),
            "vae": vae(0.18215),
            "text_encoder": text(open_clip, 64, layers=2, act="gelu"),
            "tokenizer": open_clip,
            "scheduler": DDIM_V if kind == "sd2-v" else DDIM,
        }
        pipeline = (StableDiffusionInpaintPipeline if inpaint else StableDiffusionPipeline)(**parts, **none)
    else:
        refiner = kind == "sdxl-refiner"
        width, numbers = (128, 5) if refiner else (192, 6)
        levels = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
        net = unet(
            width,
            linear=True,
            channels_in=channels,
            levels=levels,
            transformer_layers_per_block=2 if refiner else [1, 1, 2],
            addition_embed_type="text_time",
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=128 + numbers * 32,
        )
        parts = {
            "unet": net,
            "vae": vae(0.13025),
            "text_encoder": None if refiner else text(clip, 64, layers=2),
            "tokenizer": None if refiner else clip,
            "text_encoder_2": text(open_clip, 128, layers=2, act="gelu", projected=True),
            "tokenizer_2": open_clip,
            "scheduler": EULER,
        }
        if refiner:
            pipeline = StableDiffusionXLImg2ImgPipeline(
                **parts, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False
            )
        else:
            pipeline = (StableDiffusionXLInpaintPipeline if inpaint else StableDiffusionXLPipeline)(**parts)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
            for weight in part.parameters():
                if weight.ndim == 1:  # norms and biases begin at 1 and 0, which hides a mistaken name
                    weight.data += 0.1 * torch.randn_like(weight)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


KINDS = ("sd1", "sd1-inpaint", "sd2", "sd2-v", "sd2-inpaint", "sdxl", "sdxl-inpaint", "sdxl-refiner")


def saved(kind, folder):
    """A folder that diffusers wrote, and its pipeline."""
    pipeline = make(kind, folder / f"{kind}-tokenizers")
    pipeline.save_pretrained(folder / kind)
    return folder / kind, pipeline


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
