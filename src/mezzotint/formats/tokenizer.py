"""Words to numbers: the byte-pair encoding of CLIP (Radford et al. 2021; BPE: Sennrich, Haddow, Birch 2016).

A text is brought to NFC, its white space to single blanks, lower-cased, and split into runs of letters,
single digits and runs of signs. Each run is spelled in 256 byte letters, the last of them marked `</w>`, and
then neighbours are joined in the order in which the merges were learnt. A text that does not fit says so: an
`Encoding` holds how many tokens were cut and which words those were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from ..errors import MezzotintError, UsageError
from .atomic import new_folder, read_json

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
END_OF_WORD = "</w>"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Vocab = dict[str, int]  # token -> id
Merges = list[tuple[str, str]]  # pairs in the order in which they are joined


class Encoding(NamedTuple):
    """One text as ids, and what of it did not fit."""

    ids: tuple[int, ...]  # max_length of them: begin, the text, end, padding
    length: int  # how many of them count: everything up to and including the end
    cut: int  # tokens of the text that did not fit
    cut_text: str  # the end of the text that those stood for; "" when all of it fitted


class Tokens(NamedTuple):
    """A batch of encodings."""

    ids: Tensor  # [B, L] int64
    mask: Tensor  # [B, L] True up to and including the end token
    cut: tuple[int, ...]  # tokens cut from each text
    cut_text: tuple[str, ...]  # the words that those stood for


def train_bpe(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> tuple[Vocab, Merges]:
    """Learn a vocabulary of at most `vocab_size` entries: 512 byte letters, merges, begin and end.

    The same texts give the same vocabulary, in any process (the byte letters are numbered beforehand, so no
    hash order can break a tie). A small corpus may yield fewer entries; every string can be encoded even so.
    Raises UsageError if `vocab_size` has no room for the letters and the two special tokens.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters += [letter + END_OF_WORD for letter in letters]
    if vocab_size < len(letters) + 2:
        raise UsageError(
            f"vocab_size {vocab_size} is too small: the byte letters alone need {len(letters) + 2}"
        )
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer, learner.pre_tokenizer = _normalizer(), _words()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=min_frequency,
        end_of_word_suffix=END_OF_WORD,
        special_tokens=letters,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    names = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    vocab = {name: i for i, name in enumerate([*names, BOS, EOS])}
    return vocab, [(left, right) for left, right in learnt["merges"]]


class Tokenizer:
    """CLIP's tokenizer over a vocabulary and its merges; same ids as `transformers.CLIPTokenizer`."""

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        max_length: int = 77,
        special: Mapping[str, str] | None = None,
        added: Mapping[int, AddedToken] | None = None,
    ) -> None:
        """`special` names the token of each role (`bos_token`, `eos_token`, `unk_token`, `pad_token`), CLIP's
        if absent. `added` are tokens matched whole in a text, by id: the special ones, and words learnt by
        textual inversion. Raises MezzotintError if the vocabulary lacks a special token or a part of a merge.
        """
        clip = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
        self.special: dict[str, str] = clip | dict(special or {})
        self.vocab, self.merges, self.max_length = dict(vocab), list(merges), max_length
        if max_length < 3:
            raise MezzotintError(f"tokenizer: model_max_length {max_length} leaves no room for a word")
        try:
            bpe = models.BPE(
                vocab=self.vocab,
                merges=self.merges,
                continuing_subword_prefix="",
                end_of_word_suffix=END_OF_WORD,
                unk_token=self.special["unk_token"],
            )
        except (
            Exception
        ) as error:  # the library raises plain Exception, for a merge outside of the vocabulary
            raise MezzotintError(f"tokenizer: vocabulary and merges do not fit together ({error})") from error
        self._tokenizer = tokenizers.Tokenizer(bpe)
        self._tokenizer.normalizer, self._tokenizer.pre_tokenizer = _normalizer(), _words()
        self._add(dict(added or {}))
        begin, end = self.special["bos_token"], self.special["eos_token"]
        self.bos, self.eos, self.pad = self.id(begin), self.id(end), self.id(self.special["pad_token"])
        self._tokenizer.post_processor = processors.RobertaProcessing(
            (end, self.eos), (begin, self.bos), trim_offsets=False, add_prefix_space=False
        )

    def _add(self, added: dict[int, AddedToken]) -> None:
        there = {token.content for token in added.values()}
        for name in self.special.values():
            if name not in there:
                there.add(name)
                added[self.id(name)] = AddedToken(name, special=True, normalized=False)
        self.added = dict(sorted(added.items()))
        for i, token in self.added.items():
            self._tokenizer.add_tokens([token])
            got = self._tokenizer.token_to_id(token.content)
            if got != i:
                raise MezzotintError(
                    f"tokenizer: added token '{token.content}' has id {i}, but {got} is its place"
                )

    def __len__(self) -> int:
        """How many ids there are: what the text encoder's table must hold."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def id(self, token: str) -> int:
        """The id of one token; raises MezzotintError if there is none of that name."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise MezzotintError(f"tokenizer: the vocabulary has no token '{token}'")
        return int(found)

    def encode(self, text: str) -> Encoding:
        """`text` as `max_length` ids; what does not fit is cut from its end and named in the result."""
        return self._fit(text, self._tokenizer.encode(text))

    def tokens(self, text: str) -> tuple[int, ...]:
        """The ids of `text` alone, however many: no begin, no end, no padding."""
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text: "?"
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def batch(self, texts: Sequence[str]) -> Tokens:
        """The texts as one tensor of ids [B, L], its mask, and what was cut from each."""
        rows = [
            self._fit(*pair) for pair in zip(texts, self._tokenizer.encode_batch(list(texts)), strict=True)
        ]
        ids = torch.tensor([row.ids for row in rows], dtype=torch.int64).reshape(len(rows), self.max_length)
        lengths = torch.tensor([row.length for row in rows], dtype=torch.int64)
        mask = torch.arange(self.max_length) < lengths[:, None]
        return Tokens(ids, mask, tuple(row.cut for row in rows), tuple(row.cut_text for row in rows))

    def _fit(self, text: str, full: tokenizers.Encoding) -> Encoding:
        ids = full.ids
        cut = max(0, len(ids) - self.max_length)
        if cut:
            first_lost = (
                self.max_length - 1
            )  # begin and the words before it stay, the end token takes its place
            start = full.offsets[first_lost][0]
            return Encoding((*ids[:first_lost], self.eos), self.max_length, cut, text[start:])
        return Encoding((*ids, *[self.pad] * (self.max_length - len(ids))), len(ids), 0, "")

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` without the special tokens: lower-case, single blanks, signs set apart."""
        special = {token.content for token in self.added.values() if token.special}
        names = [self._tokenizer.id_to_token(i) for i in ids]
        letters = "".join(name for name in names if name is not None and name not in special)
        spelled = bytes(
            _BYTE_OF[letter] for letter in letters.replace(END_OF_WORD, "Ġ") if letter in _BYTE_OF
        )
        return spelled.decode("utf-8", errors="replace").strip()

    def files(self) -> dict[str, bytes]:
        """The files of a tokenizer folder, name to content; `transformers.CLIPTokenizer` opens them."""
        added = {
            str(i): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for i, token in self.added.items()
        }
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            **self.special,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": self.max_length,
            "tokenizer_class": "CLIPTokenizer",
        }
        merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in self.merges)
        return {
            "vocab.json": json.dumps(self.vocab, ensure_ascii=False).encode(),
            "merges.txt": merges.encode(),
            "tokenizer_config.json": json.dumps(config, indent=2).encode(),
            "special_tokens_map.json": json.dumps(self.special, indent=2).encode(),
        }


def write_tokenizer(folder: Path | str, tokenizer: Tokenizer, *, replace: bool = False) -> None:
    """Write a tokenizer folder, whole or not at all (see `atomic.new_folder` for what is raised)."""
    with new_folder(folder, replace=replace) as part:
        for name, content in tokenizer.files().items():
            (part / name).write_bytes(content)


def read_tokenizer(folder: Path | str, *, max_length: int = 77) -> Tokenizer:
    """Open a tokenizer folder: `vocab.json` with `merges.txt`, or the `tokenizer.json` of newer transformers.

    `max_length`, what the text encoder has positions for, bounds the length that the folder names.
    Raises MezzotintError naming the file that is missing or not understood.
    """
    folder = Path(folder)
    settings = folder / "tokenizer_config.json"
    config = read_json(settings) if settings.exists() else {}
    kind = config.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise MezzotintError(f"{settings}: tokenizer_class {kind} is not CLIPTokenizer")
    if (folder / "vocab.json").exists():
        vocab = read_json(folder / "vocab.json")
        merges = _read_merges(folder / "merges.txt")
        listed: list[dict[str, Any]] = []
    elif (folder / "tokenizer.json").exists():
        whole = read_json(folder / "tokenizer.json")
        model = whole.get("model", {})
        if model.get("type") != "BPE" or model.get("end_of_word_suffix") != END_OF_WORD:
            raise MezzotintError(
                f"{folder / 'tokenizer.json'}: not a CLIP tokenizer (BPE with '{END_OF_WORD}')"
            )
        vocab = model["vocab"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        merges = [(left, right) for left, right in pairs]
        listed = whole.get("added_tokens", [])
    else:
        raise MezzotintError(
            f"{folder}: neither vocab.json nor tokenizer.json is there; the checkpoint is incomplete"
        )
    special, added = _special_tokens(folder, config)
    added = {int(token["id"]): _added_token(token) for token in listed} | added
    named = min(
        int(config.get("model_max_length", max_length)), max_length
    )  # transformers writes 1e30 for "none"
    try:
        return Tokenizer(vocab, merges, max_length=named, special=special, added=added)
    except MezzotintError as error:
        raise MezzotintError(f"{folder}: {error}") from error


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )


def _words() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _byte_of() -> dict[str, int]:
    """CLIP's spelling of bytes: printable Latin-1 stands for itself, U+0100 and following for the rest."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def byte_letters() -> list[str]:
    """CLIP's 256 byte letters in the order of their ids."""
    return list(_BYTE_OF)


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], dict[int, AddedToken]]:
    """Roles and added tokens; `added_tokens_decoder` outranks the older `special_tokens_map.json`."""
    added = {int(i): _added_token(token) for i, token in config.get("added_tokens_decoder", {}).items()}
    roles: dict[str, Any] = {role: config[role] for role in ROLES if config.get(role) is not None}
    path = folder / "special_tokens_map.json"
    if not added and path.exists():
        roles |= {role: token for role, token in read_json(path).items() if role in ROLES}
    return {
        role: token["content"] if isinstance(token, dict) else token for role, token in roles.items()
    }, added


def _added_token(token: Mapping[str, Any]) -> AddedToken:
    flags = {name: bool(token.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "special")}
    return AddedToken(
        token["content"], normalized=bool(token.get("normalized", not flags["special"])), **flags
    )


def _read_merges(path: Path) -> Merges:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise MezzotintError(f"{path}: cannot be read ({error}); fetch or copy it again") from error
    merges: Merges = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise MezzotintError(f"{path}, line {number}: a merge is two tokens, this is {line!r}")
        merges.append((pair[0], pair[1]))
    return merges
