"""What a cache must know when its layers from K on hold fewer keys than the others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.pruning.compaction import Rows

FORWARD: ContextVar[Any] = ContextVar("headrouter_forward", default=None)
"""The forward that a pruner is at work in. A context variable, so that two threads on one hooked model do not meet;
module-level, because a hooked model must survive deepcopy, which a ContextVar does not."""


@dataclass
class CompactKeys:
    """Which positions the layers from K on hold keys of. Lives on the cache, so that it dies or is copied with it.

    Attributes:
        index: Long tensor ``[B, n]``: which of the first :attr:`length` positions of the full sequence have keys.
        valid: Bool tensor ``[B, n]``, or None where all are valid.
        length: Length of the full sequence they stand for. All later tokens are held.
        layer: The prune layer K.
        evicted: Whether the layers below K hold no other keys either, once a prefill is over.
        current: Length of the full sequence by now, counted here because a static cache keeps it on the device.
    """

    index: Tensor
    valid: Tensor | None
    length: int
    layer: int
    evicted: bool = False
    current: int = 0

    @classmethod
    def empty(cls, batch: int, layer: int, device: torch.device, evicted: bool = False) -> CompactKeys:
        """No keys yet."""
        return cls(torch.zeros(batch, 0, dtype=torch.long, device=device), None, 0, layer, evicted)

    @classmethod
    def of(cls, cache: Any) -> CompactKeys | None:
        """The keys that a cache carries, or None."""
        return getattr(cache, "_headrouter_keys", None)

    def put_on(self, cache: Any) -> None:
        """Lets a cache carry these keys, and take them along when its samples are reordered, repeated or selected."""
        cache._headrouter_keys = self
        if not isinstance(cache, PrunedCache):
            # The class, not methods on the object: a cycle would keep gigabytes alive until it is collected.
            cache.__class__ = _pruned_class(type(cache))  # type: ignore[arg-type]

    @property
    def gone(self) -> int:
        """Positions of the full sequence that the layers below K hold no keys of."""
        return self.length - self.index.shape[1] if self.evicted else 0

    @staticmethod
    def take_off(cache: Any) -> None:
        """Leaves the cache as if it had never carried keys."""
        if isinstance(cache, PrunedCache):
            cache.__class__ = type(cache).__mro__[2]
        if CompactKeys.of(cache) is not None:
            del cache._headrouter_keys

    def select(self, rows: Tensor) -> CompactKeys:
        """The keys of other rows of the batch, ``[B']``."""
        rows = rows.to(self.index.device)
        return replace(self, index=self.index[rows], valid=None if self.valid is None else self.valid[rows])

    def at(self, length: int) -> CompactKeys:
        """The same keys, when the full sequence is ``length`` long.

        Args:
            length: At least the length pruned at, or less where the cache was cropped after it (assisted decoding).

        Raises:
            HeadRouterError: If the cache was cropped at a dropped token.
        """
        index, valid = self.index, self.valid
        batch, tail = len(index), length - self.length
        if tail < 0:
            if -tail > index.shape[1] or not bool((index[:, tail] == length).all()):
                raise HeadRouterError(
                    f"The cache was cropped to {length} tokens, into the pruned audio, where its layers hold different "
                    "tokens. Prefill the prompt again."
                )
            index, valid = index[:, :tail], None if valid is None else valid[:, :tail]
        elif tail:
            new = torch.arange(self.length, length, device=index.device).expand(batch, -1)
            index = torch.cat((index, new), 1)
            valid = None if valid is None else torch.cat((valid, torch.ones_like(new, dtype=torch.bool)), 1)
        return replace(self, index=index, valid=valid, length=length)

    def extend(self, rows: Rows, length: int) -> CompactKeys:
        """Appends the rows of a forward over the positions from :attr:`length` to ``length``."""
        new = rows.index + self.length
        index = torch.cat((self.index.to(new.device), new), 1)
        valid = None
        if self.valid is not None or rows.valid is not None:
            parts = [(self.index, self.valid), (rows.index, rows.valid)]
            every = [torch.ones_like(i, dtype=torch.bool) if v is None else v for i, v in parts]
            valid = torch.cat([part.to(new.device) for part in every], 1)
        return replace(self, index=index, valid=valid, length=length)


class PrunedCache:
    """Goes in front of the class of a pruned cache, so that its keys follow reordering, repeating and cropping."""

    _headrouter_keys: CompactKeys

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Stores keys, under a pruner only: without one, masks would not fit what the layers hold."""
        keys = self._headrouter_keys
        # Code that is being compiled cannot read the variable.
        if (
            (layer_idx >= keys.layer or keys.evicted)
            and not torch.compiler.is_compiling()
            and _pruner_at_work() != (keys.layer, keys.evicted)
        ):
            early = ", evict_early=True" if keys.evicted else ""
            raise HeadRouterError(
                f"This cache was filled under a pruner with layer={keys.layer}{early}, which alone knows what its "
                "layers hold. Go on inside the same `with pruner(model)`, or prefill again."
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)  # type: ignore[misc]

    # Of a layer whose keys were evicted the model is told what it would hold without: its positions and masks are made
    # for the full sequence, and the pruner cuts them.

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Positions that a layer stands for; an int, or a tensor where the layer is a static one."""
        keys, held = self._headrouter_keys, super().get_seq_length(layer_idx)  # type: ignore[misc]
        return held + keys.gone if keys.gone and layer_idx < keys.layer else held

    def get_mask_sizes(self, query: Any, layer_idx: int) -> tuple[int, int]:
        """Columns of a layer's mask, and positions before the first of them."""
        keys = self._headrouter_keys
        sizes: tuple[int, int] = super().get_mask_sizes(query, layer_idx)  # type: ignore[misc]
        if not keys.gone or layer_idx >= keys.layer:
            return sizes
        layer = self.layers[layer_idx]  # type: ignore[attr-defined]
        if layer.is_sliding:
            layer = copy.copy(layer)
            for name in _COUNTS:
                if isinstance(count := getattr(layer, name, None), int):
                    setattr(layer, name, count + keys.gone)
            return cast(tuple[int, int], layer.get_mask_sizes(query))
        return sizes if layer.is_compileable else (sizes[0] + keys.gone, sizes[1])

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens, a negative number of them."""
        keys = self._headrouter_keys
        if keys.evicted and -tokens_to_remove > keys.current - keys.gone:
            raise HeadRouterError(
                f"The cache is to be cropped by {-tokens_to_remove} tokens, and holds {keys.current - keys.gone} of "
                f"{keys.current}: the pruned audio was evicted. Prefill the prompt again."
            )
        super().crop(tokens_to_remove)  # type: ignore[misc]
        self._headrouter_keys = replace(keys, current=keys.current + min(tokens_to_remove, 0))

    def reset(self) -> None:
        """Empties the cache."""
        super().reset()  # type: ignore[misc]
        CompactKeys.take_off(self)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the samples in another order."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._headrouter_keys = self._headrouter_keys.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some of the samples."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._headrouter_keys = self._headrouter_keys.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every sample."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        keys = self._headrouter_keys
        rows = torch.arange(len(keys.index), device=keys.index.device)
        self._headrouter_keys = keys.select(rows.repeat_interleave(repeats))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By its own class, which can be named; the other is made anew.
        reduced = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return (_new, (type(self).__mro__[2],), *reduced[2:])


def _new(kind: Any) -> Any:
    pruned = _pruned_class(kind)
    return pruned.__new__(pruned)


def _pruner_at_work() -> tuple[int, bool] | None:
    forward = FORWARD.get()
    return None if forward is None else (forward.engine.layer, forward.engine.evict_early)


_COUNTS = ("cumulative_length", "cumulative_length_int")
"""Attributes of a cache's layers, those that they have, that count the keys that it was given."""


def held_mask_sizes(cache: Any) -> Callable[[Any, int], tuple[int, int]]:
    """The method of a cache that tells the sizes of masks for the keys that its layers do hold."""
    owner: Any = super(PrunedCache, cache) if isinstance(cache, PrunedCache) else cache
    return cast(Callable[[Any, int], tuple[int, int]], owner.get_mask_sizes)


def evict(cache: Any, layers: Iterable[int], index: Tensor, given: int) -> None:
    """Leaves layers of a cache as they would be if they had only been given some of their keys.

    Args:
        cache: A dynamic or static cache.
        layers: Which layers of it.
        index: Long tensor ``[B, n]``: the keys that stay, numbered as they were given.
        given: How many keys these layers were given.

    Raises:
        HeadRouterError: If its layers are of a kind that this cannot be done to.
    """
    from transformers import cache_utils as kinds

    known = (kinds.DynamicLayer, kinds.DynamicSlidingWindowLayer, kinds.StaticLayer, kinds.StaticSlidingWindowLayer)
    offloaded = getattr(cache, "offloading", False)
    for layer in (cache.layers[number] for number in layers):
        if type(layer) not in known or offloaded:
            raise HeadRouterError(
                f"evict_early=True cannot take keys out of a {type(layer).__name__}{' that is offloaded' * offloaded}. "
                "Take a dynamic or a static cache that stays on its device, or evict_early=False."
            )
        room, limit = layer.keys.shape[2], index.shape[1]
        if layer.is_sliding and not getattr(layer, "record_past", False):
            limit = room if layer.is_compileable else layer.sliding_window - 1
        # It holds the last ones that it was given. Those that have left a sliding window are masked by the model, so
        # that any key may stand for them.
        place = (index[:, -limit:] - max(given - room, 0)).clamp(min=0).to(layer.keys.device)[:, None, :, None]
        for name in ("keys", "values"):
            states = getattr(layer, name)
            stay = states.gather(2, place.expand(-1, states.shape[1], -1, states.shape[3]))
            if layer.is_compileable:
                states[:, :, : stay.shape[2]] = stay
            else:
                setattr(layer, name, stay)
        for name in _COUNTS:
            count = getattr(layer, name, None)
            if isinstance(count, Tensor):
                count.fill_(index.shape[1])
            elif count is not None:
                setattr(layer, name, index.shape[1])


@cache
def _pruned_class(base: Any) -> Any:
    return type(base.__name__, (PrunedCache, base), {"__module__": base.__module__})
