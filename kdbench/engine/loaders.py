"""Loaders of rows: one for every kind of task. A kind says how some rows become a batch, in one epoch or another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from kdbench.engine.seeds import axis

Fetch = Callable[[Sequence[int], int], Any]
"""The batch of some rows of a split in one epoch."""


@dataclass
class Rows(Dataset[Any]):
    """A split of ``count`` rows, ``batch_size`` in a batch, or all for None."""

    count: int
    fetch: Fetch
    batch_size: int | None = None
    epoch: int = 0
    """The epoch that is gone through."""

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, rows: Sequence[int]) -> Any:
        return self.fetch(rows, self.epoch)


class Order(Sampler[int], ABC):
    """The rows of one epoch for one process, which depend on (seed, epoch) alone."""

    epoch = 0
    skipped = 0
    """Rows at the beginning of the epoch that were done before."""

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins."""
        self.epoch = epoch

    @abstractmethod
    def rows(self) -> Sequence[int]:
        """All rows of the epoch, in order."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows()[self.skipped :])


class Shuffled(Order):
    """A random order of all rows, shared out among ``world`` processes; in order where ``shuffle`` is off.

    ``seed`` is that of the run. Shares are of one length: some rows come twice where ``world`` does not divide them.
    """

    def __init__(self, count: int, seed: int, world: int = 1, rank: int = 0, shuffle: bool = True) -> None:
        self._share: DistributedSampler[int] = DistributedSampler(
            range(count),  # type: ignore[arg-type]
            world,
            rank,
            shuffle,
            seed=axis(seed, "data_order") % 2**31,
        )

    def __len__(self) -> int:
        return len(self._share)

    def rows(self) -> Sequence[int]:
        self._share.set_epoch(self.epoch)
        return list(self._share)


class RowLoader(DataLoader[Any]):
    """Batches of rows. Stopped in the middle of an epoch it goes on with the next batch.

    ``trained`` is the number of batches of this epoch that are done, whatever was made ahead of them.
    """

    def __init__(self, rows: Rows, order: Order | None, workers: int, trained: Callable[[], int] = lambda: 0) -> None:
        size = rows.batch_size or max(1, rows.count)
        super().__init__(rows, size, sampler=order, num_workers=workers, collate_fn=_same)
        self.rows, self.order, self._trained, self._resumed = rows, order, trained, 0

    def __iter__(self) -> Any:
        """A generator, because Lightning makes it before it says which epoch begins."""
        if self.order is not None:
            self.rows.epoch = self.order.epoch
            self.order.skipped, self._resumed = self._resumed * (self.batch_size or 1), 0
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Batches that are done of the epoch; none at its end."""
        return {"batches": self._trained() % len(self)}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Begin the next epoch after that many batches."""
        self._resumed = state_dict["batches"]


class Loaders(pl.LightningDataModule):
    """Loaders of the splits ``train``, ``val`` and ``test`` of one kind of task; each is asked for when it is needed.

    The training order depends on (seed, epoch) alone and is shared out among the processes; where all rows are one
    batch they keep their order.
    """

    def __init__(self, split: Callable[[str], Rows], seed: int, workers: int = 0) -> None:
        super().__init__()
        self.split, self.seed, self.workers = split, seed, workers

    @property
    def place(self) -> tuple[int, int]:
        """Number of processes, and ours among them."""
        trainer = self.trainer
        return (trainer.world_size, trainer.global_rank) if trainer else (1, 0)

    def order(self, rows: Rows) -> Order:
        """The order in which the training rows come."""
        return Shuffled(rows.count, self.seed, *self.place, shuffle=rows.batch_size is not None)

    def train_dataloader(self) -> RowLoader:
        rows = self.split("train")
        return RowLoader(rows, self.order(rows), self.workers, self._trained)

    def _trained(self) -> int:
        """Batches of this epoch that were trained on."""
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current if self.trainer else None
        return progress.processed if progress else 0

    def val_dataloader(self) -> RowLoader:
        return self._in_order(self.split("val"))

    def test_dataloader(self) -> RowLoader:
        return self._in_order(self.split("test"))

    def _in_order(self, rows: Rows) -> RowLoader:
        return RowLoader(rows, None, self.workers)


@dataclass
class Composite:
    """A batch of several loaders: the ``main`` one's, and one of each of the others."""

    main: Any
    beside: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.main)


class CompositeLoaders(pl.LightningDataModule):
    """An epoch of ``main``, with a batch of each loader in ``beside``, whose epochs follow one another meanwhile.

    Batches are :class:`Composite`; validation and test are ``main``'s alone.
    """

    def __init__(self, main: Loaders, beside: Mapping[str, Loaders]) -> None:
        super().__init__()
        self.main, self.beside = main, dict(beside)

    def train_dataloader(self) -> CompositeLoader:
        for loaders in (self.main, *self.beside.values()):
            loaders.trainer = self.trainer
        beside = {name: loaders.train_dataloader() for name, loaders in self.beside.items()}
        return CompositeLoader(self.main.train_dataloader(), beside)

    def val_dataloader(self) -> RowLoader:
        return self.main.val_dataloader()

    def test_dataloader(self) -> RowLoader:
        return self.main.test_dataloader()


class CompositeLoader:
    """As long as ``main``. Where the others stand depends on the number of ``main``'s batches so far alone."""

    def __init__(self, main: RowLoader, beside: Mapping[str, RowLoader]) -> None:
        assert main.order is not None
        self.loader, self.beside, self.order = main, beside, main.order
        self.sampler = main.order
        """Where Lightning says which epoch begins."""

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Composite]:
        begun = self.order.epoch * len(self.loader) + self.loader._resumed
        others = {name: _endless(loader, begun) for name, loader in self.beside.items()}
        for batch in self.loader:
            yield Composite(batch, {name: next(batches) for name, batches in others.items()})

    def state_dict(self) -> dict[str, int]:
        """That of ``main``."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Begin the next epoch after that many batches of ``main``."""
        self.loader.load_state_dict(state_dict)


def _endless(loader: RowLoader, done: int) -> Iterator[Any]:
    """Batches of one epoch after another, beginning after ``done`` of them."""
    assert loader.order is not None
    epoch, batches = divmod(done, len(loader))
    while True:
        loader.order.set_epoch(epoch)
        loader.load_state_dict({"batches": batches})
        yield from loader
        epoch, batches = epoch + 1, 0


def _same(batch: Any) -> Any:
    return batch
