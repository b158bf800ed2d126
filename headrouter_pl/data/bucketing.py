"""Batches of samples of similar length, in an order that a resumed run goes on with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from headrouter_pl.digest import digest
from headrouter_pl.errors import HeadRouterError

__all__ = ["LengthBucketSampler", "ResumableBatchSampler", "ResumableDataLoader"]


class ResumableBatchSampler(BatchSampler):
    """Batches in an order that the epoch decides, with a state to go on from in the middle of one.

    A subclass gives the batches of an epoch and their number. Its constructor must take a ``sampler``, to ignore:
    Lightning puts a distributed sampler there.

    Attributes:
        epoch: Decides the order.
        done: Batches of the epoch that have been used; :class:`ResumableDataLoader` counts them.
        plan: Digest of what the batches of all processes are made by, if the subclass sets it.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.done = 0
        self.plan = ""
        self._skip = 0
        # By these names Lightning finds set_epoch, and sees a batch sampler.
        self.sampler, self.batch_size, self.drop_last = self, 1, False  # type: ignore[assignment]

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which decides the order; Lightning does so."""
        if epoch != self.epoch:
            self._skip = 0
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the batches of it that have been used, and what tells whether they are the same in another run."""
        return {"epoch": self.epoch, "done": self.done, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration over that epoch begin after the batches that had been used.

        Raises:
            HeadRouterError: If the state is of the middle of an epoch of other batches, or of another number of
                processes. A state of an earlier version does not tell, and is taken.
        """
        done, batches = state["done"], state.get("batches")
        now = self._identity()
        wrong = [f"{name}: {state[name]}, now {now[name]}" for name in now if state.get(name, now[name]) != now[name]]
        if wrong and 0 < done < batches:
            raise HeadRouterError(
                f"The checkpoint is of the middle of an epoch with other batches ({'; '.join(wrong)}). Resume it with "
                "the number of processes, data, batch size and seed that it was made with, or begin a run of its own "
                "with its weights (LALMModule's initial_checkpoint)."
            )
        self.set_epoch(state["epoch"])
        self._skip = len(self) if done == batches else done  # an epoch that is over is over with any batches

    def _identity(self) -> dict[str, Any]:
        return {"processes": _world()[1], "batches": len(self), "plan": self.plan}

    def __iter__(self) -> Iterator[list[int]]:
        self.done, self._skip = self._skip, 0
        yield from islice(self._batches(), self.done, None)

    @abstractmethod
    def _batches(self) -> Iterable[list[int]]:
        """All batches of this process in the epoch, in order."""


class LengthBucketSampler(ResumableBatchSampler):
    """Batches of similar length under a budget of tokens, padding included.

    The batches and their order are new in each epoch and the same for the same seed and epoch; their number does not
    change. Under ``torch.distributed`` each process gets its share of the batches, all the same number: the first are
    repeated if need be.

    Args:
        lengths: Tokens of each sample.
        max_tokens: Samples of a batch times the longest of them, at most; a longer sample is a batch by itself.
        seed: Of the order.
        shuffle: Whether to mix samples of similar length, and the order of batches.
        step: Lengths count as similar if they are the same rounded up to a multiple of this.
        sampler: Ignored: where Lightning puts a distributed sampler, which this one does not need.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        max_tokens: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        step: int = 16,
        sampler: Any = None,
    ) -> None:
        if not lengths or min(lengths) < 1 or max_tokens < 1 or step < 1:
            raise ValueError("Lengths (at least one), max_tokens and step must be positive.")
        super().__init__()
        self._rounded = torch.tensor([-(-length // step) * step for length in lengths])
        self.seed = seed
        self.shuffle = shuffle
        # A batch takes all of a budget's worth of the sorted lengths: which samples of equal rounded length it takes
        # may change, the cuts do not.
        ordered = self._rounded.sort(descending=True).values.tolist()
        self._sizes: list[int] = []
        at = 0
        while at < len(ordered):  # the longest comes first, so that it sets a batch's width
            size = min(max(1, max_tokens // ordered[at]), len(ordered) - at)
            self._sizes.append(size)
            at += size
        self.plan = digest([self._rounded, self._sizes, seed, shuffle])

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return -(-len(self._sizes) // _world()[1])

    def _batches(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        count = len(self._rounded)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        order = order[self._rounded[order].argsort(descending=True, stable=True)]
        batches = [part.tolist() for part in order.split(self._sizes)]
        if self.shuffle:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        rank, world = _world()
        return [batches[i % len(batches)] for i in range(rank, len(self) * world, world)]


class ResumableDataLoader(DataLoader[Any]):
    """A loader over a :class:`ResumableBatchSampler` that goes on, in a resumed run, with the first unused batch.

    Lightning keeps its state in checkpoints. A plain loader would begin the interrupted epoch again. So does this one
    under a module that asks ``trainer.estimated_stepping_batches`` in ``configure_optimizers`` with ``max_epochs`` set:
    Lightning then makes the loader before it reads the checkpoint, and gives it no state.
    """

    batch_sampler: ResumableBatchSampler

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.batch_sampler.done += 1  # counted here, not in the sampler: workers ask it ahead of time
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The sampler's."""
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The sampler's."""
        self.batch_sampler.load_state_dict(state)


def _world() -> tuple[int, int]:
    """Rank and number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
