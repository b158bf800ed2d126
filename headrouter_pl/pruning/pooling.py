"""Index work of the scout pass: which tokens are averaged, where a group stands, what it may attend to.

The pooled sequence of a sample is padded on the right: under a causal mask no true token sees that, so that padding
needs no mask of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrouter_pl.pruning.compaction import Rows
from headrouter_pl.pruning.layout import TokenLayout, positions_of


@dataclass(frozen=True)
class Pooling:
    """The pooled sequence of one forward, on the CPU. B samples, M slots: one for each text token and each group.

    Attributes:
        layout: Where the tokens of the pooled sequence are; ``M`` positions.
        start: Long tensor ``[B, M]``, position of each slot's first token in the full sequence.
        size: Long tensor ``[B, M]``, tokens of each slot; 0 for padding.
        group: Long tensor ``[B, N]``, the group of each audio token, counted within its sample.
        audio_valid: Bool tensor ``[B, N]``, False for padding.
    """

    layout: TokenLayout
    start: Tensor
    size: Tensor
    group: Tensor
    audio_valid: Tensor

    @classmethod
    def build(cls, layout: TokenLayout, pool: int) -> Pooling:
        """Pools each contiguous run of audio tokens in groups of ``pool``, the last one of a run maybe smaller.

        Text that follows the question is left out, and so are samples without audio. One sample at least has some.
        """
        position = torch.arange(layout.shape[1], device=layout.audio_mask.device)
        last_query = torch.where(layout.query_valid, layout.query_index, -1).amax(1, keepdim=True)
        last_audio = torch.where(layout.audio_mask, position, -1).amax(1, keepdim=True)
        read = layout.valid & (position <= torch.maximum(last_query, last_audio)) & (last_audio >= 0)
        audio = layout.audio_mask
        starts_run = audio & ~torch.nn.functional.pad(audio, (1, 0))[:, :-1]
        run = torch.where(starts_run, position, -1).cummax(1).values
        first = read & (~audio | ((position - run) % pool == 0))
        slot = (first.cumsum(1) - 1).clamp(min=0)
        start, valid = positions_of(first)
        size = torch.zeros_like(start).scatter_add(1, slot, read.long())
        pooled_audio = audio.gather(1, start) & valid
        audio_index, audio_valid = positions_of(pooled_audio)
        pooled = TokenLayout(
            audio_mask=pooled_audio,
            valid=valid,
            audio_index=audio_index,
            audio_valid=audio_valid,
            query_index=slot.gather(1, layout.query_index),
            query_valid=layout.query_valid,
            prompt_mask=valid & ~pooled_audio,
            required=torch.zeros_like(audio_valid),
        )
        group = (pooled_audio.cumsum(1) - 1).clamp(min=0).gather(1, slot.gather(1, layout.audio_index))
        return cls(pooled, start, size, group.masked_fill(~layout.audio_valid, 0), layout.audio_valid)

    @property
    def middle(self) -> Tensor:
        """Long tensor ``[B, M]``: position of each slot's middle token, the earlier one of two."""
        return self.start + (self.size - 1).clamp(min=0) // 2

    def average(self, states: Tensor, pool: int) -> Tensor:
        """Means ``[B, M, d]`` of ``[B, L, d]`` over each slot, taken in float32; zero for padding."""
        start, size = (part.to(states.device, non_blocking=True) for part in (self.start, self.size))
        total = states.new_zeros(*start.shape, states.shape[-1], dtype=torch.float32)
        # A loop over the few tokens of a group: sums in one order, whatever the device.
        for step in range(pool):
            member = (start + step).clamp(max=states.shape[1] - 1)
            rows = states.gather(1, member[..., None].expand(-1, -1, states.shape[-1]))
            total += rows * (step < size)[..., None]
        return (total / size.clamp(min=1)[..., None]).to(states.dtype)

    def mask(self, mask: Tensor | None, past: int) -> Tensor | None:
        """The attention mask of the pooled sequence, out of the one that a layer was given for the full sequence.

        A slot sees what its middle token sees.

        Args:
            mask: None or ``[B, C]`` (flash attention) where a causal one is implied, or ``[B or 1, h, L, C]``, bool or
                additive.
            past: Tokens in the cache before this forward's.
        """
        if mask is None or mask.dim() == 2:
            return None
        middle, valid = (part.to(mask.device, non_blocking=True) for part in (self.middle, self.layout.valid))
        batch, slots = middle.shape
        # Columns count back from the end of the full sequence, but for a static cache that is not full yet.
        column = (middle + min(past, mask.shape[-1] - mask.shape[-2])).clamp(min=0)
        mask = Rows(middle, None).gather(mask.expand(batch, *mask.shape[1:]).movedim(1, 0)).movedim(0, 1)
        mask = mask.gather(3, column[:, None, None].expand(-1, *mask.shape[1:3], -1))
        seen = valid[:, None, None] & torch.ones(slots, slots, dtype=torch.bool, device=mask.device).tril()
        # Padding sees itself: a row that sees nothing would be NaN, and poison others through 0 * NaN.
        own = torch.eye(slots, dtype=torch.bool, device=mask.device) & ~valid[:, None, :, None]
        if mask.dtype == torch.bool:
            return (mask & seen) | own
        return mask.masked_fill(~seen, torch.finfo(mask.dtype).min).masked_fill(own, 0.0)

    def spread(self, attention: Tensor) -> Tensor:
        """Attention to tokens ``[B, P, N]``, out of that to groups ``[B, P, G]``; each row keeps its sum.

        Tokens of a group share one value, and tokens of groups that are alike have alike values, also where one group
        is smaller.
        """
        group = self.group.to(attention.device, non_blocking=True)[:, None].expand(-1, attention.shape[1], -1)
        tokens = attention.gather(2, group).masked_fill(
            ~self.audio_valid.to(attention.device, non_blocking=True)[:, None], 0.0
        )
        scale = attention.sum(2, keepdim=True) / tokens.sum(2, keepdim=True).clamp(min=torch.finfo(tokens.dtype).tiny)
        return tokens * scale
