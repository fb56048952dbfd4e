"""Pages of mapped weights: gone when let go, still readable, and nobody else's."""

import subprocess
import sys

import pytest
import torch

from mezzotint.formats import mapped
from mezzotint.formats.mapped import letting_go
from mezzotint.formats.tensors import read_tensors, write_tensors

pytestmark = pytest.mark.skipif(not mapped.MAPS.exists(), reason="Linux only")


def test_what_was_let_go_can_be_read_again(tmp_path):
    weights = {"a": torch.randn(100_000), "b": torch.randn(3)}
    write_tensors(tmp_path / "w.safetensors", weights)
    read = read_tensors(tmp_path / "w.safetensors")
    let_go = letting_go()
    for name, tensor in read.items():
        assert torch.equal(tensor, weights[name])
        let_go(tensor)
        assert torch.equal(tensor, weights[name])


def test_ordinary_memory_is_left_alone(tmp_path):
    write_tensors(tmp_path / "w.safetensors", {"a": torch.randn(10_000)})
    kept = read_tensors(tmp_path / "w.safetensors")
    x = torch.ones(100_000)
    letting_go()(x)
    assert x.sum() == 100_000
    assert len(kept) == 1


def test_peak_of_loading_is_little_more_than_what_is_loaded(tmp_path):
    """160 MB of half precision, computed with as bfloat16, in a process of its own."""
    write_tensors(
        tmp_path / "w.safetensors", {f"{i}.weight": torch.zeros(2000, 2000).half() for i in range(20)}
    )
    code = (
        "import resource, sys, torch\n"
        "from mezzotint.formats.tensors import build, read_tensors\n"
        "make = lambda: torch.nn.Sequential(*(torch.nn.Linear(2000, 2000, bias=False) for _ in range(20)))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "net = build(make, read_tensors(sys.argv[1]), where='here', dtype=torch.bfloat16)\n"
        "print((peak() - before) * 1024 / sum(p.nbytes for p in net.parameters()))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "w.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.2
