"""Vercel's AI SDK with its provider for AUTOMATIC1111, from npm: a client that was not written for this service."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from mezzotint import Pipeline

PROVIDER = os.environ.get("A1111_PROVIDER", "automatic1111-provider@0.1.1")  # or a folder with it
SCRIPT = """
import { experimental_generateImage as generateImage } from 'ai';
import { createAutomatic1111 } from 'automatic1111-provider';
const service = createAutomatic1111({ baseURL: process.argv[2] });
const options = { steps: 4, cfg_scale: 5, negative_prompt: 'red', sampler_name: 'DDIM', check_model_exists: true };
const ask = (model) => generateImage({ model: service.image(model), prompt: 'two green cats', size: '16x16', seed: 7,
  maxRetries: 0, providerOptions: { automatic1111: options } });
const { image } = await ask('tiny');
const refused = await ask('no-such-model').then(() => null, (error) => error.message);
console.log(JSON.stringify({ png: image.base64, refused }));
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdk")
    command = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--install-links",
        PROVIDER,
        "ai@5",
    ]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=180)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{PROVIDER} cannot be had from npm here: {error}")
    (folder / "ask.mjs").write_text(SCRIPT)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here: apt-get install nodejs npm")
def test_a_picture_by_the_ai_sdk(project, shared, model):
    import base64
    import io

    from PIL import Image

    command = ["node", "ask.mjs", shared.url]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    alone = Pipeline.load(model, device="cpu")(
        "two green cats",
        negative_prompt="red",
        seed=7,
        num_inference_steps=4,
        guidance_scale=5.0,
        sampler="ddim",
    )[0]
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(told["png"])))), np.asarray(alone)
    )
    assert "no-such-model" in told["refused"]
