"""Prompt-to-prompt against the method written down anew, in attention processors of diffusers' U-Net."""

import pytest
import torch
from PIL import Image

from drawing import apart, drawn
from mezzotint import Pipeline
from mezzotint.diffusion.noise import INITIAL, image_noise
from mezzotint.diffusion.process import VariancePreserving
from mezzotint.formats.image import to_image, to_tensor
from mezzotint.formats.scheduler import Plan
from tiny import tiny_checkpoint, write_tiny

STEPS, SEED, SCALE, KEEP = 6, 3, 3.0, 0.7
PICTURE = Image.linear_gradient("L").resize((16, 16)).convert("RGB")


class Store:
    """The controller of Hertz et al. 2022, section 3; rows: old and new without a prompt, old and new with one."""

    def __init__(self, moved, kept, weights):
        self.moved, self.kept, self.weights = moved, kept, weights  # [M, M], [M], [M]
        self.step = 0

    def __call__(self, share, cross):
        """share [4, heads, N, M]."""
        old, new = share[2], share[3]
        if cross and self.step < round(KEEP * STEPS):
            lent = torch.einsum("hpw,wn->hpn", old, self.moved)
            new = (self.kept * lent + (1 - self.kept) * new) * self.weights
        if not cross and self.step < round(KEEP / 2 * STEPS) and share.shape[2] <= 16**2:
            new = old
        return torch.cat([share[:3], new[None]])


class Processor:
    def __init__(self, store):
        self.store = store

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(layer(x))
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        share = attn.get_attention_scores(q, k).unflatten(0, (4, -1))
        share = self.store(share, encoder_hidden_states is not None).flatten(0, 1)
        return attn.to_out[0](attn.batch_to_head_dim(share @ v))


def reference(folder, pipe, before, after, store):
    """The picture by diffusers' nets and scheduler."""
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.unet.set_attn_processor(Processor(store))

    def told(texts):
        ids = theirs.tokenizer(
            texts, padding="max_length", max_length=theirs.tokenizer.model_max_length, return_tensors="pt"
        )
        return theirs.text_encoder(ids.input_ids)[0]

    context = torch.cat([told(["", ""]), told([before, after])])
    x0, eps = pipe.codec.encode(to_tensor(PICTURE)[None]), image_noise(SEED, INITIAL, (4, 8, 8))[None]
    theirs.scheduler.set_timesteps(2 * STEPS)  # of which strength 0.5 leaves the last half
    times = theirs.scheduler.timesteps[STEPS:]
    z = theirs.scheduler.add_noise(x0, eps, times[:1])
    for store.step, t in enumerate(times):
        old = theirs.scheduler.add_noise(x0, eps, t[None])
        answer = theirs.unet(torch.cat([old, z, old, z]), t, context).sample
        weak, strong = answer[1:2], answer[3:]
        z = theirs.scheduler.step(weak + SCALE * (strong - weak), t, z).prev_sample
    return to_image(pipe.codec.decode(z)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    plan = Plan(VariancePreserving(), "v_prediction", "ddim", {}, "trailing", {})
    checkpoint = tiny_checkpoint(plan)
    for name, weight in checkpoint.unet.named_parameters():  # so that attention has a say
        if name.endswith(("to_q.weight", "to_v.weight")):
            weight.data *= 6
    return write_tiny(tmp_path_factory.mktemp("p2p") / "model", checkpoint)


def positions(pipe, prompt):
    """Where each word stands, behind the begin."""
    at, found = 1, {}
    for word in prompt.split():
        count = len(pipe.encoder.tokenizer.tokens(word))
        found[word] = list(range(at, at + count))
        at += count
    return found, at


@pytest.mark.parametrize(
    ("before", "after", "reweight"),
    [
        ("two red cats", "two green cats", None),
        ("two cats", "two green cats", None),
        ("two green cats", "two green cats", "green:3"),
        ("two cats", "two green cats", "cats:0.25"),
    ],
    ids=["replace", "refine", "reweight", "refine and reweight"],
)
@torch.no_grad()
def test_the_same_picture_as_by_the_method_written_down_anew(folder, before, after, reweight):
    pipe = Pipeline.load(folder, device="cpu")
    length = pipe.encoder.capacity + 2
    moved, kept, weights = torch.eye(length), torch.ones(length), torch.ones(length)
    (_, end_before), (new, end_after) = positions(pipe, before), positions(pipe, after)
    if before == "two cats":  # "green" is new: it looks for itself, and the words behind it have moved up
        moved[:, new["green"]], kept[new["green"]] = 0, 0
        for word, shift in (("cats", end_after - end_before), ("", end_after - end_before)):
            for i in new[word] if word else [end_after]:
                moved[:, i] = torch.nn.functional.one_hot(torch.tensor(i - shift), length)
    elif end_before != end_after:
        pytest.skip("the words have different numbers of tokens")
    if reweight:
        word, number = reweight.split(":")
        weights[new[word]] = float(number)
    asked = {"task": "rewrite", "method": "words", "image": PICTURE, "prompt": after, "source_prompt": before}
    asked |= {"seed": SEED, "strength": 0.5, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    [ours] = drawn(pipe, **asked, reweight=reweight, content_strength=KEEP)
    there = reference(folder, pipe, before, after, Store(moved, kept, weights))
    assert apart(ours, there) <= 1
    [plain] = drawn(pipe, **asked, content_strength=0.0)
    assert apart(ours, plain) > 3  # there is something to agree in
