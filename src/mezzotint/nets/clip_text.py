"""The text encoder of Stable Diffusion: a causal transformer over tokens (CLIP, arXiv 2103.00020).

Each position sees itself and what stands before it; so the end of the text has seen everything, and its
state is the vector of the whole. Attribute names and configuration keys are those of transformers'
CLIPTextModel and CLIPTextModelWithProjection, in the form with the prefix `text_model.`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError, unknown
from .config import Fixed, check_divisible, parse, serialise

PLAIN, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"

FIXED: Fixed = {
    "attention_dropout": (0.0,),
    "model_type": ("clip_text_model",),
}

# What transformers writes beside the architecture, in one version or another; no forward pass depends on it.
BOOKKEEPING = frozenset(
    {
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "dropout",
        "add_cross_attention",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "prefix",
        "problem_type",
        "pruned_heads",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "tokenizer_class",
        "torchscript",
        "use_bfloat16",
        "use_cache",
        "use_return_dict",
    }
)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class CLIPTextConfig:
    """The keys of a transformers `text_encoder/config.json`; `projected` stands for its `architectures`.

    Raises `UsageError` for an activation that we do not have and a width that the heads do not divide.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    projected: bool = (
        False  # CLIPTextModelWithProjection: the pooled state goes through one more linear layer
    )

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise unknown("text encoder config 'hidden_act'", self.hidden_act, ACTIVATIONS)
        check_divisible(
            "text encoder config: hidden_size",
            self.hidden_size,
            "num_attention_heads",
            self.num_attention_heads,
        )

    @property
    def residual_gain(self) -> float:
        """Each of the 2 * layers branches starts so small that their sum does not grow with depth."""
        return float((2 * max(self.num_hidden_layers, 1)) ** -0.5)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> CLIPTextConfig:
        """From a transformers `config.json`; raises `UsageError` for what we do not compute."""
        name = (raw.get("architectures") or [PLAIN])[0]
        if name not in (PLAIN, PROJECTED):
            raise unknown("text encoder class", str(name), [PLAIN, PROJECTED])
        return parse(
            cls,
            raw,
            what="text encoder config",
            fixed=FIXED,
            ignored=BOOKKEEPING,
            derived={"projected": name == PROJECTED},
        )

    def to_dict(self) -> dict[str, Any]:
        """The contents of a transformers `config.json`."""
        keys = serialise(self, fixed=FIXED)
        return {"architectures": [PROJECTED if keys.pop("projected") else PLAIN]} | keys


class TextStates(NamedTuple):
    """What a text encoder says of a text."""

    last: Tensor  # [B, L, D] after all layers and the final normalisation
    pooled: (
        Tensor  # [B, D] its state at the end of the text, or [B, projection_dim] where there is a projection
    )
    hidden: tuple[
        Tensor, ...
    ]  # layers + 1 of [B, L, D]: the embeddings, then after each layer; [-2] is SDXL's


def _linear(
    config: CLIPTextConfig, dim_in: int, dim_out: int, *, gain: float = 1.0, bias: bool = True
) -> nn.Linear:
    """A linear layer with weights of standard deviation gain / sqrt(hidden_size), as CLIP begins."""
    linear = nn.Linear(dim_in, dim_out, bias=bias)
    nn.init.normal_(linear.weight, std=config.initializer_factor * gain * config.hidden_size**-0.5)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class Embeddings(nn.Module):
    """A vector for each token plus a vector for each position."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=config.initializer_factor * config.initializer_range)

    def forward(self, ids: Tensor, learnt: Tensor | None = None) -> Tensor:
        table, size = self.token_embedding, self.token_embedding.num_embeddings
        if learnt is None:
            tokens = table(ids)
        else:
            tokens = table(ids.clamp(max=size - 1))
            rows = F.embedding((ids - size).clamp(min=0), learnt.to(tokens))
            tokens = torch.where((ids >= size)[..., None], rows, tokens)
        return tokens + self.position_embedding.weight[: ids.shape[1]]


class SelfAttention(nn.Module):
    """Each position looks at itself and at what stands before it."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = _linear(config, dim, dim, gain=config.residual_gain)
        self.k_proj = _linear(config, dim, dim, gain=config.residual_gain)
        self.v_proj = _linear(config, dim, dim, gain=config.residual_gain)
        self.out_proj = _linear(config, dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, L, d]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(h.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Each position by itself."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.hidden_act]
        dim, inner = config.hidden_size, config.intermediate_size
        self.fc1 = _linear(config, dim, inner, gain=2**-0.5)
        self.fc2 = _linear(config, inner, dim, gain=config.residual_gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class EncoderLayer(nn.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers, one after another."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)


class TextTransformer(nn.Module):
    """Embeddings, layers, final normalisation: what the checkpoints call `text_model`."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class CLIPTextModel(nn.Module):
    """Token ids -> states for cross-attention, and one vector for the whole."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        self.text_projection = (
            _linear(config, config.hidden_size, config.projection_dim, bias=False)
            if config.projected
            else None
        )

    def forward(self, ids: Tensor, learnt: Tensor | None = None) -> TextStates:
        """Token ids [B, L] -> `TextStates`. Raises `UsageError` where L exceeds `max_position_embeddings`.

        `learnt` [n, D] goes on with the table of tokens: its rows are the ids from `vocab_size` on.
        """
        length, limit = ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise UsageError(
                f"a text of {length} tokens is longer than the {limit} that this text encoder holds"
            )
        model = self.text_model
        hidden = model.encoder(model.embeddings(ids, learnt))
        last = model.final_layer_norm(hidden[-1])
        known = ids if learnt is None else ids.where(ids < self.config.vocab_size, 0)
        pooled = last[torch.arange(len(ids), device=ids.device), self.end(known)]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return TextStates(last, pooled, hidden)

    def end(self, ids: Tensor) -> Tensor:
        """Where each text ends: [B, L] -> [B], the first end-of-text token.

        Configs written before transformers 4.31 hold an `eos_token_id` of 2, wrong for their vocabularies;
        with them the largest id marks the end, as in OpenAI's own code.
        """
        if self.config.eos_token_id == 2:
            return ids.argmax(dim=1)
        return torch.eq(ids, self.config.eos_token_id).int().argmax(dim=1)
