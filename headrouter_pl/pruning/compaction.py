"""Index work of the engine: which rows go through the layers from K on, and what they may attend to.

The rows of a sample that go on are laid out as ``[fillers..., kept tokens in time order]``. Fillers bring the samples
of a batch to one length: they are positions of the sample's own that are not kept, and are invalid as keys. They stand
on the left, so that cropping a cache and sliding windows, which both count from the right, meet kept tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from headrouter_pl.errors import HeadRouterError


@dataclass(frozen=True)
class Rows:
    """The rows of one forward that go through the layers from K on.

    Attributes:
        index: Long tensor ``[B, n]``, positions in this forward's sequence.
        valid: Bool tensor ``[B, n]``, False for fillers; None where there are none.
    """

    index: Tensor
    valid: Tensor | None

    @classmethod
    def choose(cls, keep: Tensor, attended: Tensor, counts: Tensor) -> Rows:
        """Lays out the kept positions, and fillers.

        Args:
            keep: Bool tensor ``[B, L]``: positions that go on.
            attended: Bool tensor ``[B, L]``: False for padding, which is taken last as a filler.
            counts: Long tensor ``[B]`` on the CPU: the true entries of each row of ``keep``.
        """
        length = int(counts.max())
        # Sort key: padding 0, dropped 1, kept 2; a stable sort keeps time order within each.
        order = (keep.to(torch.uint8) + (keep | attended)).argsort(dim=1, stable=True)
        fillers = length - counts
        valid = None
        if bool(fillers.any()):
            valid = (torch.arange(length, device=counts.device) >= fillers[:, None]).to(keep.device)
        return cls(order[:, -length:], valid)

    def gather(self, states: Tensor) -> Tensor:
        """Takes the rows out of ``[..., B or 1, L, d]``, giving ``[..., B, n, d]``."""
        index = self.index.to(states.device)
        if states.shape[-3] != len(index):
            states = states.expand(*states.shape[:-3], len(index), *states.shape[-2:])
        return states.gather(-2, index[..., None].expand(*states.shape[:-2], -1, states.shape[-1]))

    def gather_ids(self, ids: Tensor) -> Tensor:
        """Takes the rows out of ``[..., B or 1, L]``, giving ``[..., B, n]``."""
        return self.gather(ids[..., None])[..., 0]

    def scatter(self, states: Tensor, full: Tensor) -> Tensor:
        """Puts rows ``[..., B, n, d]`` back at their places in a copy of ``[..., B, L, d]``."""
        index = self.index.to(states.device)
        # A layer under autocast may give another dtype than it was given.
        return full.to(states.dtype).scatter(-2, index[..., None].expand(states.shape), states)


@dataclass
class CompactKeys:
    """Which positions the layers from K on hold keys of. Lives on the cache, so that it dies or is copied with it.

    Attributes:
        index: Long tensor ``[B, n]``: positions in the full sequence, of the tokens up to :attr:`length`.
        valid: Bool tensor ``[B, n]``, or None where all are valid.
        length: Length of the full sequence they stand for. All later tokens are held.
        current: Length of the full sequence by now, counted here because a static cache keeps it on the device.
    """

    index: Tensor
    valid: Tensor | None
    length: int
    current: int = 0

    ATTRIBUTE = "_headrouter_keys"

    @classmethod
    def of(cls, cache: Any) -> CompactKeys | None:
        """The keys that a cache carries, or None."""
        return getattr(cache, cls.ATTRIBUTE, None)

    def put_on(self, cache: Any) -> None:
        """Lets a cache carry these keys, and take them along when its samples are reordered, repeated or selected."""
        setattr(cache, self.ATTRIBUTE, self)
        for name, method in _FOLLOWED.items():
            if name not in vars(cache) and hasattr(cache, name):
                # Bound methods: deepcopy of the cache binds them to the copy.
                setattr(cache, name, MethodType(method, cache))

    @classmethod
    def take_off(cls, cache: Any) -> None:
        """Leaves the cache as if it had never carried keys."""
        if cls.of(cache) is not None:
            for name in (cls.ATTRIBUTE, *_FOLLOWED):
                vars(cache).pop(name, None)

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
        return CompactKeys(index, valid, length)

    def extend(self, rows: Rows, length: int) -> CompactKeys:
        """Appends the rows of a forward over the positions from :attr:`length` to ``length``."""
        new = rows.index + self.length
        index = torch.cat((self.index.to(new.device), new), 1)
        valid = None
        if self.valid is not None or rows.valid is not None:
            parts = [(self.index, self.valid), (rows.index, rows.valid)]
            every = [torch.ones_like(i, dtype=torch.bool) if v is None else v for i, v in parts]
            valid = torch.cat([part.to(new.device) for part in every], 1)
        return CompactKeys(index, valid, length)

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> CompactKeys:
        """No keys yet."""
        return cls(torch.zeros(batch, 0, dtype=torch.long, device=device), None, 0)


def _select(cache: Any, index: Tensor) -> None:
    keys = CompactKeys.of(cache)
    if keys is not None:
        index = index.to(keys.index.device)
        keys.index = keys.index[index]
        keys.valid = None if keys.valid is None else keys.valid[index]


def _reorder_cache(cache: Any, beam_idx: Tensor) -> None:
    type(cache).reorder_cache(cache, beam_idx)
    _select(cache, beam_idx)


def _batch_select_indices(cache: Any, indices: Tensor) -> None:
    type(cache).batch_select_indices(cache, indices)
    _select(cache, indices)


def _batch_repeat_interleave(cache: Any, repeats: int) -> None:
    type(cache).batch_repeat_interleave(cache, repeats)
    keys = CompactKeys.of(cache)
    if keys is not None:
        _select(cache, torch.arange(len(keys.index), device=keys.index.device).repeat_interleave(repeats))


_FOLLOWED: dict[str, Callable[..., None]] = {
    "batch_repeat_interleave": _batch_repeat_interleave,
    "batch_select_indices": _batch_select_indices,
    "reorder_cache": _reorder_cache,
}


def compact_mask(
    mask: Tensor | None,
    *,
    rows: Rows | None,
    keys: CompactKeys,
    key_length: int,
    key_offset: int,
    num_queries: int,
    flash: bool,
    dtype: torch.dtype,
) -> Tensor | None:
    """The attention mask of a layer from K on, out of the one the model made for the full sequence.

    Args:
        mask: What the layer was given: None, ``[B, C]`` (flash attention) or ``[B or 1, h, L, C]``, bool or additive.
            Its columns stand for the last positions of the full sequence, or for a static cache's slots.
        rows: The rows of this forward, None where all of them go on.
        keys: All keys that the layer holds, this forward's included.
        key_length: Keys that the layer's attention will see, unfilled slots of a static cache included.
        key_offset: Held keys before the first of those (sliding windows).
        num_queries: Rows n of this forward.
        flash: Whether the layer runs flash attention, whose masks mark keys only.
        dtype: Of the hidden states.

    Returns:
        A mask for ``n`` queries and ``key_length`` keys, or None where none is needed.
    """
    if mask is None and keys.valid is None:
        return None
    device = keys.index.device if mask is None else mask.device
    index = keys.index.to(device)[:, key_offset : key_offset + key_length]
    valid = torch.ones_like(index, dtype=torch.bool) if keys.valid is None else keys.valid.to(device)[:, key_offset:]
    valid = valid[:, :key_length]
    batch, held = index.shape
    if held < key_length:  # slots of a static cache that nothing fills yet
        index = torch.cat((index, index.new_zeros(batch, key_length - held)), 1)
        valid = torch.cat((valid, valid.new_zeros(batch, key_length - held)), 1)
    if mask is None:
        if flash:
            return valid
        visible = valid[:, None, None, :].expand(batch, 1, num_queries, key_length)
        if num_queries > 1:
            first = held - num_queries
            causal = (
                torch.arange(key_length, device=device) <= torch.arange(num_queries, device=device)[:, None] + first
            )
            visible = visible & causal
        return _self_visible(visible, rows, held)
    columns = mask.shape[-1]
    # Columns count back from the end of the full sequence, but for a static cache that is not full yet.
    column = index - max(keys.length - columns, 0)
    valid = valid & (column >= 0) & (column < columns)
    column = column.clamp(0, columns - 1)
    if mask.dim() == 2:
        return mask.expand(batch, -1).gather(1, column) & valid.to(mask.dtype)
    mask = mask.expand(batch, *mask.shape[1:])
    if rows is not None:
        mask = rows.gather(mask.movedim(1, 0)).movedim(0, 1)
    mask = mask.gather(3, column[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))
    if mask.dtype == torch.bool:
        return _self_visible(mask & valid[:, None, None, :], rows, held)
    return mask.masked_fill(~_self_visible(valid[:, None, None, :].expand_as(mask), rows, held), torch.finfo(dtype).min)


def _self_visible(visible: Tensor, rows: Rows | None, held: int) -> Tensor:
    """Lets each filler see itself: a row that sees nothing would be NaN, and poison others through 0 * NaN."""
    if rows is None or rows.valid is None:
        return visible
    first = held - visible.shape[2]
    own = torch.eye(visible.shape[2], visible.shape[3] - first, dtype=torch.bool, device=visible.device)
    own = torch.nn.functional.pad(own, (first, 0))
    return visible | (own & ~rows.valid.to(visible.device)[:, None, :, None])
