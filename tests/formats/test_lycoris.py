"""LoHa, LoKr and OFT: what PEFT makes of them, and what their definitions say (Yeh et al. 2023, arXiv 2309.14859)."""

import copy

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mezzotint.errors import MezzotintError
from mezzotint.formats.lora import is_lora, read_lora, write_lora
from mezzotint.nets.lowrank import LowRank, changed

LAYERS = {"line": (12, 8), "wide": (12, 8, 3, 3), "one": (12, 8, 1, 1)}  # out, in, kernel
KOHYA = "lora_unet_"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def net():
    return nn.ModuleDict(
        {"line": nn.Linear(8, 12), "wide": nn.Conv2d(8, 12, 3), "one": nn.Conv2d(8, 12, 1)}
    ).requires_grad_(False)


def randn(*shape):
    return torch.randn(*shape)


def saved(path, tensors):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def worn(path, plain, weight=1.0):
    lora = read_lora(path, {"unet": plain})
    return changed(plain, {layer: [(change, weight)] for layer, change in lora.layers["unet"].items()})


# --- PEFT ---

LOHA = {"target_modules": list(LAYERS), "r": 4, "alpha": 6, "init_weights": False, "rank_pattern": {"one": 2}}
LOKR = LOHA | {"alpha_pattern": {"wide": 3.0}}


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(**LOHA),
        peft.LoHaConfig(**LOHA, use_effective_conv2d=True),
        peft.LoKrConfig(**LOKR),
        peft.LoKrConfig(**LOKR | {"r": 1, "rank_pattern": {}}, decompose_both=True, decompose_factor=4),
        peft.LoKrConfig(**LOKR | {"r": 1, "rank_pattern": {}}, use_effective_conv2d=True),
        peft.LoKrConfig(**LOKR | {"r": 64, "rank_pattern": {}}),  # both matrices whole; and divided by r
    ],
    ids=["loha", "loha-tucker", "lokr", "lokr-both", "lokr-tucker", "lokr-whole"],
)
def test_what_peft_writes_changes_the_same_weights(tmp_path, config):
    plain = net()
    wrapped = peft.get_peft_model(copy.deepcopy(plain), config)
    wrapped.save_pretrained(tmp_path)
    ours = worn(tmp_path / "adapter_model.safetensors", plain).state_dict()
    for name, weight in wrapped.merge_and_unload().state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(ours[name], plain.state_dict()[name]) == name.endswith("bias")


# --- the definitions, in numpy ---


def tucker(core, a, b):
    """sum over i, j of core[i, j, ...] a[i, out] b[j, in]"""
    return np.einsum("ijkl,io,jn->onkl", core, a, b)


def loha(p):
    if "hada_t1" in p:
        one, two = (tucker(p[f"hada_t{i}"], p[f"hada_w{i}_a"], p[f"hada_w{i}_b"]) for i in (1, 2))
    else:
        one, two = (p[f"hada_w{i}_a"] @ p[f"hada_w{i}_b"] for i in (1, 2))
    return one * two * p["alpha"] / len(p["hada_w1_b"])


def lokr(p):
    c = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_w2" in p:
        d = p["lokr_w2"]
    elif "lokr_t2" in p:
        d = tucker(p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    else:
        d = p["lokr_w2_a"] @ p["lokr_w2_b"]
    ranks = [len(p[key]) for key in ("lokr_w1_b", "lokr_w2_b") if key in p]
    d = d.reshape(len(d), -1)
    whole = np.array([[c[i // len(d), j // d.shape[1]] * d[i % len(d), j % d.shape[1]]
                       for j in range(c.shape[1] * d.shape[1])] for i in range(len(c) * len(d))])  # fmt: skip
    return whole * (p["alpha"] / ranks[0] if ranks else 1.0)


def shapes(**named):
    return {name: randn(*shape) for name, shape in named.items()}


CASES = {
    "loha": (loha, {
        "line": {"hada_w1_a": (12, 3), "hada_w1_b": (3, 8), "hada_w2_a": (12, 3), "hada_w2_b": (3, 8)},
        "wide": {"hada_w1_a": (12, 3), "hada_w1_b": (3, 72), "hada_w2_a": (12, 3), "hada_w2_b": (3, 72)},
        "one": {"hada_w1_a": (12, 2), "hada_w1_b": (2, 8), "hada_w2_a": (12, 2), "hada_w2_b": (2, 8)},
    }),
    "loha-tucker": (loha, {
        "wide": {"hada_t1": (3, 3, 3, 3), "hada_w1_a": (3, 12), "hada_w1_b": (3, 8),
                     "hada_t2": (3, 3, 3, 3), "hada_w2_a": (3, 12), "hada_w2_b": (3, 8)},
    }),
    "lokr": (lokr, {
        "line": {"lokr_w1": (3, 2), "lokr_w2": (4, 4)},
        "wide": {"lokr_w1": (3, 4), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 18)},
        "one": {"lokr_w1_a": (6, 2), "lokr_w1_b": (2, 4), "lokr_w2": (2, 2, 1, 1)},
    }),
    "lokr-both": (lokr, {
        "line": {"lokr_w1_a": (6, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (2, 2), "lokr_w2_b": (2, 2)},
        "wide": {"lokr_w1": (3, 4), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 2)},
        "one": {"lokr_w1": (3, 4), "lokr_w2": (4, 2, 1, 1)},
    }),
}  # fmt: skip


def written(case, alpha=2.0):
    """A file of one kind in kohya's dialect, and what each layer gains by the definition."""
    formula, layers = CASES[case]
    tensors, gains = {}, {}
    for layer, parts in layers.items():
        parts = shapes(**parts) | {"alpha": torch.tensor(alpha)}
        tensors |= {f"{KOHYA}{layer}.{role}": part for role, part in parts.items()}
        gains[layer] = formula({role: part.double().numpy() for role, part in parts.items()})
    return tensors, gains


@pytest.mark.parametrize("case", CASES)
def test_what_is_added_is_what_the_definition_says(tmp_path, case):
    plain, (tensors, gains) = net(), written(case)
    assert is_lora(tensors)
    other = worn(saved(tmp_path / "a.safetensors", tensors), plain, 0.7)
    for layer, gain in gains.items():
        weight = plain[layer].weight
        expected = weight.double() + 0.7 * torch.from_numpy(gain).reshape(weight.shape)
        torch.testing.assert_close(other[layer].weight.double(), expected, rtol=1e-5, atol=1e-5)


def oft(blocks, alpha, weight):
    """R^T W by blocks of rows, R by Cayley's formula."""
    q = blocks - blocks.transpose(0, 2, 1)
    size = np.sqrt((q**2).sum())
    if alpha and size > alpha * len(weight):
        q = q * alpha * len(weight) / size
    one = np.eye(q.shape[1])
    turned = []
    for block, rows in zip(q, weight.reshape(len(q), q.shape[1], -1), strict=True):
        turn = (one + block) @ np.linalg.inv(one - block)
        np.testing.assert_allclose(turn @ turn.T, one, atol=1e-9)
        turned.append(turn.T @ rows)
    return np.concatenate(turned).reshape(weight.shape)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.05, 100.0])
def test_a_rotation_turns_blocks_of_rows_and_keeps_their_angles(tmp_path, alpha):
    plain = net()
    blocks = {"line": randn(3, 4, 4), "wide": randn(6, 2, 2), "one": randn(1, 12, 12)}
    tensors = {f"{KOHYA}{layer}.oft_blocks": block for layer, block in blocks.items()}
    tensors |= {f"{KOHYA}{layer}.alpha": torch.tensor(alpha) for layer in blocks if alpha is not None}
    other = worn(saved(tmp_path / "a.safetensors", tensors), plain)
    for layer, block in blocks.items():
        before, after = plain[layer].weight.double(), other[layer].weight.double()
        expected = torch.from_numpy(oft(block.double().numpy(), alpha, before.numpy()))
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
        gram = [matrix.flatten(1).T @ matrix.flatten(1) for matrix in (before, after)]
        torch.testing.assert_close(*gram, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(before, after, atol=1e-3)
    half = worn(tmp_path / "a.safetensors", plain, 0.5)
    torch.testing.assert_close(half["line"].weight, (plain["line"].weight + other["line"].weight) / 2)
    tensors[f"{KOHYA}wide.rescale"] = torch.rand(12, 1, 1, 1) + 0.5
    longer = worn(saved(tmp_path / "b.safetensors", tensors), plain)["wide"].weight
    torch.testing.assert_close(longer, tensors[f"{KOHYA}wide.rescale"] * other["wide"].weight)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("case", ["loha", "lokr"])
def test_dora_on_top_sets_lengths(tmp_path, case, rows):
    plain, (tensors, _) = net(), written(case)
    lengths = torch.rand(12, 1, 1, 1) + 0.5 if rows else torch.rand(1, 8, 1, 1) + 0.5
    tensors[f"{KOHYA}wide.dora_scale"] = lengths
    weight = worn(saved(tmp_path / "a.safetensors", tensors), plain)["wide"].weight
    by = weight.flatten(1) if rows else weight.transpose(0, 1).flatten(1)
    torch.testing.assert_close(by.norm(dim=1), lengths.flatten())


@pytest.mark.parametrize("case", [*CASES, "oft"])
def test_there_and_back(tmp_path, case):
    plain = net()
    tensors = written(case)[0] if case != "oft" else {
        f"{KOHYA}line.oft_blocks": randn(3, 4, 4), f"{KOHYA}line.alpha": torch.tensor(0.1)}  # fmt: skip
    first = saved(tmp_path / "a.safetensors", tensors)
    lora = read_lora(first, {"unet": plain})
    write_lora(tmp_path / "b.safetensors", lora, dialect="kohya")
    again = load_file(tmp_path / "b.safetensors")
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        whole = case.startswith("lokr") and f"{key.rpartition('.')[0]}.lokr_w1" in tensors
        if not (key.endswith("alpha") and whole):  # says nothing where both are whole
            assert torch.equal(again[key], tensor), key
    for layer in lora.layers["unet"]:
        one, two = (worn(path, plain)[layer].weight for path in (first, tmp_path / "b.safetensors"))
        assert torch.equal(one, two)
    with pytest.raises(MezzotintError, match="is no product of two matrices, which diffusers cannot read"):
        write_lora(tmp_path / "c.safetensors", lora)


def test_several_kinds_add_up_in_one_layer(tmp_path):
    plain = net()
    paths = [saved(tmp_path / f"{case}.safetensors", written(case)[0]) for case in ("loha", "lokr")]
    changes = [read_lora(path, {"unet": plain}).layers["unet"]["wide"] for path in paths]
    changes.append(LowRank(randn(2, 8, 3, 3), randn(12, 2, 1, 1)))
    weights = (0.5, -1.0, 2.0)
    both = changed(plain, {"wide": list(zip(changes, weights, strict=True))})["wide"].weight
    expected = plain["wide"].weight + sum(
        weight * change.delta(plain["wide"].weight) for change, weight in zip(changes, weights, strict=True)
    )
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"drop": "hada_w2_b"}, "lacks its 'hada_w2_b' part"),
        ({"rename": ("line", "lime")}, r"'lora_unet_lime.alpha' has no place .*nearest is 'lora_unet_line'"),
        ({"line.hada_w1_a": randn(5, 3)}, r"hada_w1_a \[5, 3\].* no place"),
        ({"line.hada_w1_a": randn(12, 2)}, r"hada_w1_a \[12, 2\].* no place"),
        ({"line.hada_w1_a": torch.tensor(1.0)}, r"has 'hada_w1_a' \[\], which is no matrix"),
        ({"line.lora_up.weight": randn(12, 2)}, "has parts of LoRA and of LoHa"),
        ({"line.alpha": torch.tensor([1.0, 2.0])}, "alpha nan; the file is damaged"),
        ({"new.oft_blocks": randn(2, 3, 4, 4), "as": "one"}, "is a BOFT, which is not supported"),
        ({"new.oft_blocks": randn(5, 2, 2), "as": "one"}, "no place"),
        ({"new.lokr_w1": randn(3, 3), "new.lokr_w2": randn(4, 4), "as": "line"}, "has parts of LoHa and of LoKr"),
        ({"one.diff": randn(12, 8, 1, 1)}, "belongs to full differences, which is not supported"),
    ],
)  # fmt: skip
def test_wrong_files_are_told_in_one_line(tmp_path, change, says):
    layer = KOHYA + "line"
    tensors = shapes(**{f"{layer}.{role}": size for role, size in CASES["loha"][1]["line"].items()})
    tensors[f"{layer}.alpha"] = torch.tensor(1.0)
    if "drop" in change:
        del tensors[f"{layer}.{change['drop']}"]
    elif "rename" in change:
        tensors = {key.replace(*change["rename"]): t for key, t in reversed(tensors.items())}
    else:
        place = change.get("as", "")
        tensors |= {KOHYA + key.replace("new", place): t for key, t in change.items() if key != "as"}
    with pytest.raises(MezzotintError, match=says) as caught:
        read_lora(saved(tmp_path / "wrong.safetensors", tensors), {"unet": net()})
    assert "\n" not in str(caught.value)
