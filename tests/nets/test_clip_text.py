"""The text encoder against transformers' CLIPTextModel and CLIPTextModelWithProjection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from mezzotint.errors import UsageError
from mezzotint.nets.clip_text import CLIPTextConfig, CLIPTextModel

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "projection_dim": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 10,
    "bos_token_id": 98,
    "eos_token_id": 99,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "quick_gelu": {},
    "gelu": {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
    "legacy_end": {"eos_token_id": 2},
}


def pair(change: dict[str, Any], *, projected: bool) -> tuple[torch.nn.Module, CLIPTextModel]:
    torch.manual_seed(0)
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    theirs = kind(transformers.CLIPTextConfig(**(SMALL | change))).eval()
    for p in theirs.parameters():
        p.data += 0.1 * torch.randn_like(p)
    raw = theirs.config.to_dict() | {"architectures": [kind.__name__]}
    ours = CLIPTextModel(CLIPTextConfig.from_dict(raw)).eval()
    ours.load_state_dict(prefixed(theirs.state_dict()), strict=True)
    return theirs, ours


def prefixed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers >= 5.6 leaves the prefix of a plain text model away; all other versions write it."""
    own = ("text_model.", "text_projection.")
    return {key if key.startswith(own) else "text_model." + key: value for key, value in state.items()}


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_agrees_with_transformers(name: str, projected: bool) -> None:
    theirs, ours = pair(CONFIGS[name], projected=projected)
    # ends in the middle, twice, and at the last place; an id of 2 must not be taken for the end
    ids = torch.tensor([[98, 2, 40, 99, 7, 8], [98, 99, 2, 99, 0, 0], [98, 1, 2, 3, 4, 99]])
    expected = theirs(ids, output_hidden_states=True)
    states = ours(ids)
    torch.testing.assert_close(states.last, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    pooled = expected.text_embeds if projected else expected.pooler_output
    torch.testing.assert_close(states.pooled, pooled, rtol=1e-4, atol=1e-5)
    assert len(states.hidden) == len(expected.hidden_states) == 4
    for mine, other in zip(states.hidden, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_both_rules_for_the_end() -> None:
    ids = torch.tensor([[5, 3, 9, 1, 9], [2, 7, 8, 1, 1]])
    _, modern = pair({"eos_token_id": 7}, projected=False)
    assert modern.end(ids).tolist() == [0, 1]  # none in the first: position 0, as transformers has it
    _, legacy = pair({"eos_token_id": 2}, projected=False)
    assert legacy.end(ids).tolist() == [2, 2]


@torch.no_grad()
def test_no_position_sees_what_follows() -> None:
    _, ours = pair({}, projected=False)
    a, b = torch.tensor([[98, 5, 6, 7]]), torch.tensor([[98, 5, 60, 99]])
    assert torch.equal(ours(a).last[:, :2], ours(b).last[:, :2])
    assert not torch.allclose(ours(a).last[:, 2:], ours(b).last[:, 2:])


@pytest.mark.parametrize("projected", [False, True])
def test_config_goes_out_and_comes_back(projected: bool, tmp_path: Any) -> None:
    theirs, ours = pair({"hidden_act": "gelu"}, projected=projected)
    assert ours.config.projected == projected
    assert CLIPTextConfig.from_dict(ours.config.to_dict()) == ours.config
    theirs.save_pretrained(tmp_path)
    saved = transformers.CLIPTextConfig.from_pretrained(tmp_path)
    assert CLIPTextConfig.from_dict(saved.to_dict()) == ours.config
    again = transformers.CLIPTextConfig.from_dict(ours.config.to_dict())
    extra = ("transformers_version", "_name_or_path", "dtype")
    assert {k: v for k, v in again.to_dict().items() if k not in extra} == {
        k: v for k, v in saved.to_dict().items() if k not in extra
    }


def test_reads_a_config_of_2022() -> None:
    """The keys of Stable Diffusion 1.5's text_encoder/config.json."""
    old = {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408,
    }
    with torch.device("meta"):
        net = CLIPTextModel(CLIPTextConfig.from_dict(old))
    assert sum(p.numel() for p in net.parameters()) == 123_060_480  # of CLIP-L's text tower, as published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 64}, "did you mean 'hidden_size'"),
        ({"projected": True}, "unknown key in text encoder config 'projected'"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"attention_dropout": 0.1}, "'attention_dropout' = 0.1 is not supported"),
        ({"model_type": "t5"}, "model_type"),
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ({"num_attention_heads": 7}, "num_attention_heads = 7"),
        ({"vocab_size": 1.5}, "'vocab_size' is 1.5"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CLIPTextConfig.from_dict(CLIPTextConfig().to_dict() | change)


def test_refuses_a_text_that_is_too_long() -> None:
    _, ours = pair({}, projected=False)
    with pytest.raises(UsageError, match="11 tokens is longer than the 10"):
        ours(torch.zeros(1, 11, dtype=torch.long))
