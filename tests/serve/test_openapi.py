"""schemathesis, an independent program, against our OpenAPI document."""

import subprocess
import sys
from pathlib import Path

import pytest

# What fields mean together (a mask without a picture, a size that the model cannot draw) no schema says, so that a body
# may fit the schema and still be a 400: that check is left out, all others are made.
LEFT_OUT = "positive_data_acceptance"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["/api/", "/v1/", "/sdapi/"])
def test_schemathesis_finds_nothing(start, tmp_path, part):
    running = start(limits={"waiting": 5, "deadline": 2.0, "steps": 8, "images": 2})
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json", "--checks", "all",
        "--exclude-checks", LEFT_OUT,
        "--include-path-regex", f"^{part}", "--max-examples", "12", "--seed", "1", "--request-timeout", "20",
        "--phases", "examples,coverage,fuzzing", "--generation-database", "none",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
