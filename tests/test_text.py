"""From prompts to states: chunks, weights and towers, against AUTOMATIC1111's rules in transformers."""

import dataclasses

import pytest
import torch
from transformers import CLIPTextConfig as TheirConfig
from transformers import CLIPTextModel as TheirModel
from transformers import CLIPTextModelWithProjection as TheirProjected

from mezzotint.errors import UsageError
from mezzotint.formats.names import text_today as text_names
from mezzotint.formats.tokenizer import Tokenizer, train_bpe
from mezzotint.nets import CLIPTextConfig, CLIPTextModel
from mezzotint.prompt import weigh
from mezzotint.text import TextEncoder

CPU = torch.device("cpu")
LENGTH, CAPACITY = 77, 75
WORDS = ["a red apple, and two green cats"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    vocab, merges = train_bpe(WORDS, 560)
    return Tokenizer(vocab, merges, max_length=LENGTH)


def pair(tokenizer, *, seed, width, projected=False):
    """Our encoder and transformers' with the same random weights, whose states have a mean."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad,
    }
    theirs = (TheirProjected if projected else TheirModel)(TheirConfig(**config)).eval()
    for name, weight in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, 0.5, 0.3)
    ours = CLIPTextModel(CLIPTextConfig(**config, projected=projected)).eval()
    ours.load_state_dict(text_names(theirs.state_dict()))
    return ours, theirs


@pytest.fixture(scope="module")
def single(tokenizer):
    ours, theirs = pair(tokenizer, seed=1, width=16)
    return TextEncoder([(ours, tokenizer)], CPU), theirs


def by_rule(tokenizer, text):
    """Chunks as (ids, weights) of 77, by the rules as they are told: full at 75, cut behind a near comma."""
    comma = tokenizer.vocab[",</w>"]
    chunks, chunk, last_comma = [], [], -1

    def close():
        nonlocal chunk, last_comma
        ids = [tokenizer.bos, *(i for i, _ in chunk), tokenizer.eos]
        weights = [1.0, *(w for _, w in chunk)]
        chunks.append(
            (ids + [tokenizer.pad] * (LENGTH - len(ids)), weights + [1.0] * (LENGTH - len(weights)))
        )
        chunk, last_comma = [], -1

    for number, section in enumerate(weigh(text)):
        if number:
            close()
        for run in section:
            for token in tokenizer.tokens(run.text):
                if token == comma:
                    last_comma = len(chunk)
                elif len(chunk) == CAPACITY and last_comma != -1 and len(chunk) - last_comma <= 20:
                    chunk, moved = chunk[: last_comma + 1], chunk[last_comma + 1 :]
                    close()
                    chunk = moved
                if len(chunk) == CAPACITY:
                    close()
                chunk.append((token, run.weight))
    if chunk or not chunks:
        close()
    return chunks


@torch.no_grad()
def states_by_rule(tokenizer, theirs, text, hidden=None):
    rows = []
    for ids, weights in by_rule(tokenizer, text):
        said = theirs(torch.tensor([ids]), output_hidden_states=True)
        z = said.last_hidden_state if hidden is None else said.hidden_states[hidden]
        weighed = z * torch.tensor(weights)[:, None]
        rows.append(weighed * (z.mean() / weighed.mean()))
    return torch.cat(rows, dim=1)


PROMPTS = [
    "",
    "a red apple",
    "a (red:1.4) apple and [two] (green (cats:1.2):0.7)",
    "apple " * 75,
    "apple " * 76,
    "apple " * 75 + "BREAK cats",
    "apple " * 160,
    "apple " * 60 + ", " + "cats " * 30,
    "apple " * 50 + ", " + "cats " * 30,
    "(apple:1.2) " * 60 + ", (cats " * 10 + ", " * 30,
    "a BREAK (b:1.1) BREAK",
    "a BREAK BREAK b",
    "a (red BREAK apple:1.5)",
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_states_are_those_of_the_rules(single, tokenizer, prompt):
    ours, theirs = single
    cond = ours(prompt)
    torch.testing.assert_close(cond.text, states_by_rule(tokenizer, theirs, prompt), rtol=1e-4, atol=1e-5)
    assert cond.pooled is None
    assert cond.mask is None


def test_a_plain_text_is_what_it_always_was(single, tokenizer):
    ours, _ = single
    ids = torch.tensor([tokenizer.encode("a red apple").ids])
    with torch.inference_mode():
        assert torch.equal(ours("a red apple").text, ours.encoders[0][0](ids).last)


def test_a_chunk_does_not_depend_on_its_company(single):
    ours, _ = single
    long = ours("apple " * CAPACITY + "BREAK a (red:1.3) cat").text
    assert torch.equal(long[:, LENGTH:], ours("a (red:1.3) cat").text)


def test_two_towers_stand_side_by_side(tokenizer):
    """As in SDXL: the states before the last layer, next to each other; the second's vector of the first chunk."""
    (small, their_small), (large, their_large) = (
        pair(tokenizer, seed=2, width=16),
        pair(tokenizer, seed=3, width=24, projected=True),
    )
    encoder = TextEncoder([(small, tokenizer), (large, tokenizer)], CPU, pooled=True)
    for prompt in ("a (red:1.4) apple", "apple " * 80 + ", (cats:1.3)"):
        cond = encoder(prompt)
        expected = [states_by_rule(tokenizer, net, prompt, hidden=-2) for net in (their_small, their_large)]
        torch.testing.assert_close(cond.text, torch.cat(expected, -1), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            first = torch.tensor([by_rule(tokenizer, prompt)[0][0]])
            torch.testing.assert_close(cond.pooled, their_large(first).text_embeds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [1, 2])
def test_an_earlier_layer_is_normalised_as_the_last_one(single, tokenizer, layer):
    ours, theirs = single
    ids = torch.tensor([tokenizer.encode("a red apple").ids])
    with torch.no_grad():
        hidden = theirs(ids, output_hidden_states=True).hidden_states[-layer]
        norm = theirs.get_submodule(
            "final_layer_norm" if hasattr(theirs, "final_layer_norm") else "text_model.final_layer_norm"
        )
        expected = norm(hidden)
    heard = ours.heard_at(layer)
    torch.testing.assert_close(heard("a red apple").text, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(heard.heard_at(1)("a red apple").text, ours("a red apple").text)
    assert torch.equal(heard.null("").text, heard("").text)
    with pytest.raises(
        UsageError, match=f"clip_skip .* is {layer + 2}; the text encoder of this model has 2 layers"
    ):
        ours.heard_at(layer + 2)


def test_where_states_have_no_mean_weights_are_all(tokenizer):
    torch.manual_seed(0)
    net, _ = pair(tokenizer, seed=4, width=16)
    torch.nn.init.ones_(net.text_model.final_layer_norm.weight)
    torch.nn.init.zeros_(net.text_model.final_layer_norm.bias)
    encoder = TextEncoder([(net, tokenizer)], CPU)
    plain, weighed = encoder("a red apple").text, encoder("a (red:1.5) apple").text
    ratio = weighed / plain
    red = len(tokenizer.tokens("a")) + 1
    torch.testing.assert_close(ratio[0, red], torch.full_like(ratio[0, 0], 1.5))
    assert torch.equal(weighed[0, :red], plain[0, :red])


# --- words that were learnt ---


def learnt(tokenizer, **words):
    ours, _ = pair(tokenizer, seed=1, width=16)
    torch.manual_seed(5)
    vectors = {word: [torch.randn(count, 16)] for word, count in words.items()}
    return TextEncoder([(ours, tokenizer)], CPU, learnt=vectors), vectors


def test_a_learnt_word_that_is_a_known_one_says_the_same(tokenizer):
    """Vectors taken from the table: the states must be those of the tokens themselves."""
    ours, _ = pair(tokenizer, seed=1, width=16)
    table = ours.text_model.embeddings.token_embedding.weight
    ids = tokenizer.tokens("red apple")
    copied = TextEncoder([(ours, tokenizer)], CPU, learnt={"<it>": [table[list(ids)].detach()]})
    plain = TextEncoder([(ours, tokenizer)], CPU)
    for said, meant in (("a <it> and", "a red apple and"), ("a (<it>:1.3)", "a (red apple:1.3)")):
        torch.testing.assert_close(copied(said).text, plain(meant).text, rtol=1e-5, atol=1e-6)
    assert torch.equal(copied("a cat").text, plain("a cat").text)


def test_learnt_words_are_found_whole_and_stay_together(tokenizer):
    encoder, _ = learnt(tokenizer, thing=3, things=2)
    first = encoder.encoders[0][0].config.vocab_size

    def new(text):
        return [[token.id - first for token in chunk if token.id >= first] for chunk in encoder.chunks(text)]

    assert new("a Thing, things") == [[0, 1, 2, 3, 4]]
    assert new("nothing thinga") == [[]]
    assert [len(chunk) for chunk in encoder.chunks("apple " * 74 + "thing")] == [74, 3]
    assert new("apple " * 74 + "thing") == [[], [0, 1, 2]]


def test_the_end_is_found_behind_learnt_words(tokenizer):
    """Old configurations find the end by the largest id, which those of learnt words exceed."""
    net, _ = pair(tokenizer, seed=6, width=16, projected=True)
    table = net.text_model.embeddings.token_embedding.weight
    vectors = [table[list(tokenizer.tokens("red"))].detach()]
    old = CLIPTextModel(dataclasses.replace(net.config, eos_token_id=2)).eval()
    old.load_state_dict(net.state_dict())
    for model in (net, old):
        encoder = TextEncoder([(model, tokenizer)], CPU, pooled=True, learnt={"<it>": vectors})
        torch.testing.assert_close(encoder("a <it> cat").pooled, encoder("a red cat").pooled)


def test_a_word_that_fills_no_chunk(tokenizer):
    with pytest.raises(UsageError, match="'huge' has 76 vectors, and a text of this model holds 75"):
        learnt(tokenizer, huge=76)
