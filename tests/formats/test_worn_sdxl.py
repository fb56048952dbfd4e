"""LoRAs, embeddings and the language of prompts in pictures of SDXL and its refiner, whose text encoders are others."""

import numpy as np
import pytest
import torch

import kinds
from mezzotint import Pipeline
from mezzotint.formats.embedding import Embedding, write_embedding
from mezzotint.formats.lora import Lora, write_lora
from mezzotint.nets.lowrank import LowRank

LAYER = "text_model.encoder.layers.0.mlp.fc1"


def drawn(pipeline, **fields):
    (image,) = pipeline(seed=1, num_inference_steps=2, width=16, height=16, **fields)
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["sdxl", "sdxl-refiner"])
def test_sdxl_wears_both_too(tmp_path, kind):
    folder, _ = kinds.saved(kind, tmp_path)
    shelf = tmp_path / "shelf"
    pipeline = Pipeline.load(folder, device="cpu", extras=[shelf])
    torch.manual_seed(0)
    word = {"text_encoder": torch.randn(2, 64), "text_encoder_2": torch.randn(2, 128)}
    write_embedding(shelf / "embeddings" / "thing.safetensors", Embedding("thing", word))
    net = pipeline.wardrobe.texts["text_encoder_2"]
    outs, ins = net.get_submodule(LAYER).weight.shape
    change = LowRank(torch.randn(2, ins), torch.randn(outs, 2))
    write_lora(shelf / "loras" / "ink.safetensors", Lora({"text_encoder_2": {LAYER: change}}))
    bare = drawn(pipeline, prompt="a thing")
    others = [
        drawn(pipeline, prompt="a thing", embeddings=["thing"]),
        drawn(pipeline, prompt="a thing", loras=["ink"]),
        drawn(pipeline, prompt="[a thing BREAK (red:1.3)|apple]", negative_prompt="cats"),
    ]
    assert not any(np.array_equal(bare, other) for other in others)
    assert np.array_equal(bare, drawn(pipeline, prompt="a thing"))
