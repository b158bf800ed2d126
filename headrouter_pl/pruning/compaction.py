"""Index work of the engine: which rows go through the layers from K on, and what they may attend to.

The rows of a sample that go on are laid out as ``[fillers..., kept tokens in time order]``. Fillers bring the samples
of a batch to one length: they are positions of the sample's own that are not kept, and are invalid as keys. They stand
on the left, so that cropping a cache and sliding windows, which both count from the right, meet kept tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from headrouter_pl.pruning.caches import CompactKeys


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
            valid = (torch.arange(length, device=counts.device) >= fillers[:, None]).to(keep.device, non_blocking=True)
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
