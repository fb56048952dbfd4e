"""Step-level batching: one lane of computation that all running pictures share (after Yu et al. 2022, Orca).

Every picture is drawn by a thread of its own that runs an ordinary sampler. What is costly, the net and the decoder,
it asks the lane for, and waits. The lane gathers the calls that fit together (the same net and shapes, at whatever
noise levels, guided or not told apart by their rows) and answers them in one forward. So pictures of different
samplers, steps, guidance and tasks share the machine, and a short one leaves as soon as it is done: nobody waits for
the longest of a batch. On a processor the answers are, to the last bit, those of each call alone (`exact.gathered`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..codec import Codec
from ..diffusion.types import Cond, Net
from ..exact import Trials, gathered
from ..nets.blocks import Attentive
from ..pipeline import SMALL, Pipeline

PATIENCE = 0.004  # seconds that a call waits for others that are about to come


@dataclass(frozen=True)
class Call:
    """Something to be computed. Calls with the same `kind` may be answered together."""

    kind: Hashable
    most: int  # so many at a time
    answer: Callable[[list[Any]], list[Any]]  # arguments of several calls -> their answers
    given: Any
    future: Future[Any] = field(default_factory=Future)


class Lane:
    """A thread that answers calls, as many together as fit; `most`: pictures at most in one forward.

    `exact`: answers are held to the last bit where a pipeline can be; what that costs is in benchmarks/serve.py.
    """

    def __init__(self, most: int = 8, *, exact: bool = True) -> None:
        self.most, self.exact = most, exact
        self.forwards = 0  # how many were made, for how many calls: their ratio is the mean batch
        self.answered = 0
        self._calls: list[Call] = []
        self._members = 0
        self._open = True
        self._changed = threading.Condition()
        self._trials: WeakKeyDictionary[Net, Trials] = WeakKeyDictionary()
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)
        self._thread.start()

    @property
    def members(self) -> int:
        """How many draw at the moment."""
        return self._members

    def close(self) -> None:
        """Answers what was asked, then ends."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._thread.join()

    @contextmanager
    def member(self) -> Iterator[None]:
        """Whoever draws within is waited for, a moment, before the others are answered."""
        with self._changed:
            self._members += 1
        try:
            yield
        finally:
            with self._changed:
                self._members -= 1
                self._changed.notify_all()

    def shared(self, pipeline: Pipeline) -> Pipeline:
        """The same pipeline, computing in this lane."""
        share = partial(self._net, exact=pipeline.exact and self.exact)
        denoiser = replace(pipeline.denoiser, net=share(pipeline.denoiser.net))
        return replace(pipeline, denoiser=denoiser, share=share, codec=_Decoded(pipeline.codec, self))

    def ask(self, call: Call) -> Any:
        with self._changed:
            if not self._open:
                raise RuntimeError("the lane is closed")
            self._calls.append(call)
            self._changed.notify_all()
        return call.future.result()

    def _net(self, net: Net, *, exact: bool) -> Net:
        trials = self._trials.setdefault(net, {}) if exact else None

        def answer(calls: list[tuple[Tensor, Tensor, Cond]]) -> list[Tensor]:
            return gathered(net, calls, trials)

        def asked(z: Tensor, t: Tensor, cond: Cond, **knobs: Any) -> Any:
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                return net(z, t, cond, **knobs)  # somebody differentiates: it stays in their thread
            if knobs:  # whose attention is watched or changed: a call of its own kind
                return self.ask(Call(object(), 1, lambda given: [net(z, t, cond, **knobs)], None))
            pictures = max(1, SMALL // z[0, 0].numel()) if exact else self.most
            fields = tuple(None if one is None else (one.shape, one.dtype) for one in cond)
            kind = ("net", id(net), z.shape, z.dtype, z.stride(), t.dtype, fields)
            return self.ask(Call(kind, min(self.most, pictures), answer, (z, t, cond)))

        return _Attentive(asked, net) if isinstance(net, Attentive) else asked

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._calls) or not self._open)
                if not self._calls:
                    return
                until = time.monotonic() + PATIENCE
                while self._open and len(self._calls) < self._members:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
                first = self._calls[0]  # the oldest; with it all that fit
                group = [call for call in self._calls if call.kind == first.kind][: first.most]
                chosen = set(map(id, group))
                self._calls = [call for call in self._calls if id(call) not in chosen]
            self.forwards, self.answered = self.forwards + 1, self.answered + len(group)
            try:
                with torch.inference_mode():
                    answers = first.answer([call.given for call in group])
            except BaseException as error:  # is theirs who asked, not the lane's
                for call in group:
                    call.future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                for call, answer in zip(group, answers, strict=True):
                    call.future.set_result(answer)


@dataclass(frozen=True)
class _Attentive:
    """A net that computes in the lane, and is as good as itself to those who look at its attention."""

    asked: Callable[..., Tensor]
    net: Attentive

    def __call__(self, z: Tensor, t: Tensor, cond: Cond, **knobs: Any) -> Tensor:
        return self.asked(z, t, cond, **knobs)

    def prepared(self, cond: Cond) -> Cond:
        return self.net.prepared(cond)


@dataclass(frozen=True)
class _Decoded:
    """A codec that computes in the lane, one picture after another."""

    codec: Codec
    lane: Lane

    @property
    def factor(self) -> int:
        return self.codec.factor

    @property
    def channels(self) -> int:
        return self.codec.channels

    def encode(self, image: Tensor) -> Tensor:
        answered: Tensor = self.lane.ask(
            Call(object(), 1, lambda given: [self.codec.encode(given[0])], image)
        )
        return answered

    def decode(self, z: Tensor) -> Tensor:
        answered: Tensor = self.lane.ask(Call(object(), 1, lambda given: [self.codec.decode(given[0])], z))
        return answered
