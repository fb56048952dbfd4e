"""Any folder of pictures as the batches of a run.

Everything is a function of the seed and of a picture's or a slot's number, a slot being one row of one step's batch:
which window of the picture is seen, whether it is mirrored, which of its captions is told or none. So the same rows
come whoever computes them: in one process or several, at once or in parts, resumed or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from ..data.folder import Record, picture_size
from ..data.remote import open_url, shown
from ..data.shards import Access, in_shard
from ..data.sources import read_records
from ..data.split import split
from ..data.views import Bucket, Seen, Size, View, bucket_rows, bucket_table, buckets, nearest, seen
from ..diffusion.noise import generator
from ..errors import UsageError
from ..formats.image import open_image
from .config import TrainConfig
from .order import Epochs, Order, ShardOrder
from .world import WHOLE, Share

T = TypeVar("T")

LOOKED = 10_000  # pictures whose sizes are looked at where nothing depends on them
ENDLESS = 2**31  # windows and mirrors of a picture, where none is kept
GIB = 2**30


class Row(NamedTuple):
    """One picture of a batch."""

    slot: int  # the row's number in the run, from which all randomness of it comes
    picture: int  # its number in `Pictures.records`
    view: int  # which of its windows and mirrors
    caption: str  # "" if it is not told
    label: str | None  # its class, None if it is not told


class Pictures:
    """The pictures of a run, by number."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        step: int,
        needs: str,
        prior: Sequence[Record] | None = None,
        captioned: Callable[[Record], Record] = lambda record: record,
    ) -> None:
        """`step`: what a bucket's sides must be multiples of. `needs`: "text", "class" or "none". `prior`: see there.

        `captioned` says what is told of a picture beside what its files say. Raises UsageError if the pictures do not
        have what the model is to be told.
        """
        self.config, self.settings = config, config.dataset
        found = read_records(config.data, self.settings.layout, access(config))
        own = [captioned(_captioned(record, self.settings.caption)) for record in found]
        self.records = [*own, *(prior or ())]
        _check_told(self.records, needs, config)
        self.classes = tuple(sorted({r.extra["class"] for r in self.records})) if needs == "class" else ()
        self.step = step
        side = self.settings.resolution
        if side < step:
            raise UsageError(
                f"dataset.resolution {side} is less than {step}, the smallest that the model takes"
            )
        self.choices = buckets(side, step, self.settings.aspect)
        square = len(self.choices) == 1
        self.sizes = [self.choices[0] if square else picture_size(r) for r in self.records]
        self.buckets = [nearest(size, self.choices) for size in self.sizes]
        self.split = split(own, self.settings.held_out)
        self.order = self._order([self.buckets[i] for i in self.split.train])
        self.prior_order = Order(self.buckets[len(own) :], config.optim.batch, "prior", config.seed)
        self.own = len(own)
        self._kept: dict[int, Image.Image] = {}
        self._room = int(self.settings.memory * GIB)
        self._lock = Lock()

    def _order(self, buckets: Sequence[Size]) -> Epochs:
        """That of the pictures that are trained on: pictures in shards are read near-sequentially."""
        batch, key = self.config.optim.batch, ("pictures", self.config.seed)
        train = [self.records[i] for i in self.split.train]
        if not all(in_shard(record) for record in train):
            return Order(buckets, batch, *key)
        shards, (lanes, window) = [r.path for r in train], (self.settings.lanes, self.settings.window)
        return ShardOrder(buckets, shards, batch, *key, lanes=lanes, window=window)

    def rows(self, step: int, share: Share = WHOLE, *, views: int = ENDLESS) -> list[Row]:
        """The rows of a share of a step's batch."""
        pictures = self.order(step)
        batch = self.config.optim.batch
        return [self._row(step * batch + i, self.split.train[pictures[i]], views) for i in share.rows(batch)]

    def prior_rows(self, step: int, share: Share = WHOLE, *, views: int = ENDLESS) -> list[Row]:
        """As many rows of the prior's pictures."""
        pictures = self.prior_order(step)
        batch = self.config.optim.batch
        return [self._row(-1 - (step * batch + i), self.own + pictures[i], views) for i in share.rows(batch)]

    def _row(self, slot: int, picture: int, views: int) -> Row:
        draw = generator("row", self.config.seed, slot)
        view, caption = (int(torch.randint(n, (), generator=draw)) for n in (views, ENDLESS))
        told = float(torch.rand((), generator=draw)) >= self.settings.dropout
        record = self.records[picture]
        captions = record.captions if told else ()
        chosen = (
            captions[caption % len(captions) if self.settings.captions == "random" else 0] if captions else ""
        )
        return Row(slot, picture, view, chosen, record.extra.get("class") if told else None)

    def view(self, picture: int, number: int) -> View:
        """Window and mirror number `number` of a picture; number 0 is the middle, as it is."""
        mirrored = self.settings.flip and number % 2 == 1
        left = top = 0.5
        if self.settings.crop == "random" and number:
            name = self.records[picture].name
            left, top = torch.rand(2, generator=generator("view", self.config.seed, name, number)).tolist()
        return View(self.buckets[picture], left, top, mirrored)

    @property
    def variants(self) -> int:
        """How many views of a picture differ, where they are kept."""
        if self.settings.crop == "random":
            return self.settings.views
        return 2 if self.settings.flip else 1

    def see(self, picture: int, number: int) -> Seen:
        """A view of a picture; MezzotintError naming a file that cannot be decoded."""
        return seen(self.open(picture), self.view(picture, number), self.settings.background)

    def open(self, picture: int) -> Image.Image:
        """The decoded picture; the first ones that fit into `dataset.memory` are kept."""
        with self._lock:
            if picture in self._kept:
                return self._kept[picture]
        image = open_image(self.records[picture].read(), name=self.records[picture].name)
        with self._lock:
            size = image.width * image.height * len(image.getbands())
            if size <= self._room and picture not in self._kept:
                self._room -= size
                self._kept[picture] = image
        return image

    def key(self, picture: int, number: int) -> tuple[str, ...]:
        """What a view depends on: the file's bytes, window, mirror and background."""
        digest = hashlib.sha256(self.records[picture].read()).hexdigest()
        return digest, repr(self.view(picture, number)), repr(self.settings.background)

    def table(self) -> str:
        """The buckets of the pictures that are trained on, as text."""
        return bucket_table(self.rows_of_buckets())

    def rows_of_buckets(self) -> list[Bucket]:
        """The same, as rows; with one bucket, of very many pictures some are looked at."""
        train = self.split.train
        if len(self.choices) > 1:
            return bucket_rows([self.sizes[i] for i in train], [self.buckets[i] for i in train])
        looked = self.some(train, LOOKED)
        sizes = [picture_size(self.records[i]) for i in looked]
        scale = len(train) / max(1, len(looked))
        rows = bucket_rows(sizes, [self.buckets[i] for i in looked])
        return [row._replace(pictures=len(train), enlarged=round(row.enlarged * scale)) for row in rows]

    def some(self, among: Sequence[int], count: int) -> list[int]:
        """Some of the pictures `among`, the same ones every time, spread over them; all if there are fewer."""
        if len(among) <= count:
            return list(among)
        return [among[i * len(among) // count] for i in range(count)]


def access(config: TrainConfig) -> Access:
    """How shards and tables may be read in a run."""
    settings, cache = config.dataset, config.out / "cache"
    opener = open_url if settings.download else None
    return Access(
        settings.damaged, cache / "shards", opener, cache / "shelf", settings.shelf, settings.columns
    )


def _captioned(record: Record, caption: str) -> Record:
    return replace(record, captions=(caption,)) if caption and not record.captions else record


def _check_told(records: Sequence[Record], needs: str, config: TrainConfig) -> None:
    if needs == "text":
        silent = [r for r in records if not r.captions]
        if silent:
            raise UsageError(
                f"{shown(config.data)}: {len(silent)} of {len(records)} pictures have no caption, the first is "
                f"{silent[0].name}; caption them, or set dataset.caption or model.condition"
            )
    if needs == "class" and any("class" not in r.extra for r in records):
        raise UsageError(
            f"{shown(config.data)}: pictures have no class; put each into a folder that is named like its class, or "
            'set model.condition = "none"'
        )


def stacked(views: Sequence[Seen]) -> np.ndarray:
    """uint8 [B, H, W, 3] of views of one size."""
    return np.stack([view.pixels for view in views])


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in lists of at most `size`."""
    return (items[i : i + size] for i in range(0, len(items), size))
