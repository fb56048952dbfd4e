"""Tar shards of small pictures, each of one grey that tells its number."""

import io
import tarfile

import numpy as np
from PIL import Image


def encoded(number, size=(8, 6), kind="PNG", **knobs):
    out = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), number % 250, np.uint8)).save(out, kind, **knobs)
    return out.getvalue()


def write_shard(path, members):
    """A tar archive of (name, bytes), in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder, shards=3, samples=5):
    for shard in range(shards):
        members = []
        for i in range(samples):
            number = shard * samples + i
            members += [
                (f"{number:04}.png", encoded(number)),
                (f"{number:04}.txt", f"picture {number}".encode()),
            ]
        write_shard(folder / f"shard-{shard:03}.tar", members)
    return folder / f"shard-{{000..{shards - 1:03}}}.tar"
