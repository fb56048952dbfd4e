"""Kills a training run again and again, from outside: python killing.py CONFIG.json KILLS.

This process imports everything and computes nothing; each attempt is a fork of it. An attempt is killed a random part
of a step after a random number of steps, or while it gets ready; the last one goes on to the end.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch.utils.tensorboard  # noqa: F401 - imported once, for all attempts

from mezzotint.training import adapters, autoencoder, denoising, features, words  # noqa: F401 - likewise
from mezzotint.training.config import TrainConfig
from mezzotint.training.watch import run


def attempt(config, steps, rng):
    """Whether a fork was killed before it was done; it lives for `steps` steps, for ever if None.

    It may go one step ahead, not more, so that it is not done before a killer that the system lets wait.
    """
    receiving, sending = os.pipe()
    permits, granting = os.pipe()
    os.write(granting, b"." * (steps or 0))
    child = os.fork()
    if child == 0:
        os.close(receiving)
        try:
            for _ in run(config):
                if steps is not None:
                    os.write(sending, b".")
                    os.read(permits, 1)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    os.close(sending)
    if steps is not None:
        begun = time.monotonic()
        for _ in range(steps):
            if not os.read(receiving, 1):
                break
        took = (time.monotonic() - begun) / max(1, steps)
        time.sleep(rng.uniform(0, took if steps else 0.3))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    for pipe in (receiving, permits, granting):
        os.close(pipe)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        sys.exit(f"an attempt failed with status {os.WEXITSTATUS(status)}")
    return False


if __name__ == "__main__":
    settings = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text())
    dice = random.Random(0)
    killed = sum(attempt(settings, dice.choice([0, 1, 1, 2, 3]), dice) for _ in range(int(sys.argv[2])))
    attempt(settings, None, dice)
    print(killed)
