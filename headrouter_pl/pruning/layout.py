"""Where each token of a batch is: audio, prompt text, padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrouter_pl.errors import AudioMaskError


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one forward, on the CPU. B samples, L positions, N audio tokens and Q query tokens (padded).

    Attributes:
        audio_mask: Bool tensor ``[B, L]``.
        valid: Bool tensor ``[B, L]``, False for padding.
        audio_index: Long tensor ``[B, N]``, positions of the audio tokens, in time order.
        audio_valid: Bool tensor ``[B, N]``.
        query_index: Long tensor ``[B, Q]``, positions of the prompt's text tokens that follow the audio, in order;
            where none follow, of the last prompt token.
        query_valid: Bool tensor ``[B, Q]``.
        prompt_mask: Bool tensor ``[B, L]``: the prompt's text, without answers and drafts.
        required: Bool tensor ``[B, N]``: audio tokens that are never dropped, because the output at them is read: the
            last token of a prompt, from which generation starts, and one before a token that is trained on.
    """

    audio_mask: Tensor
    valid: Tensor
    audio_index: Tensor
    audio_valid: Tensor
    query_index: Tensor
    query_valid: Tensor
    prompt_mask: Tensor
    required: Tensor

    @property
    def seen(self) -> Tensor:
        """Long tensor ``[B]``: audio tokens of each sample."""
        return self.audio_valid.sum(1)

    @property
    def shape(self) -> torch.Size:
        """``(B, L)``."""
        return self.audio_mask.shape

    @classmethod
    def build(
        cls,
        audio_mask: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_length: int | None = None,
        ignore_index: int = -100,
    ) -> TokenLayout:
        """Lays out one batch.

        Args:
            audio_mask: Bool tensor ``[B, L]`` on the CPU.
            attention_mask: ``[B, L]`` tensor, zero for padding, on the CPU; None where there is none.
            labels: Long tensor ``[B, L]`` on the CPU; tokens that are trained on are answers, not prompt.
            prompt_length: Positions from here on are generated or drafted, not prompt.
            ignore_index: The label of tokens that are not trained on.
        """
        length = audio_mask.shape[1]
        position = torch.arange(length, device=audio_mask.device)
        valid = torch.ones_like(audio_mask) if attention_mask is None else attention_mask.bool()
        audio_mask = audio_mask & valid
        prompt = valid.clone()
        if labels is not None:
            prompt &= labels == ignore_index
        if prompt_length is not None:
            prompt &= position < prompt_length
        audio_index, audio_valid = positions_of(audio_mask)
        last_audio = torch.where(audio_mask, position, -1).amax(1, keepdim=True)
        queries = prompt & (position > last_audio)
        # The last token of the prompt; of the sample where every token is an answer.
        last = torch.where(prompt, position, -1).amax(1, keepdim=True)
        last = torch.where(last < 0, torch.where(valid, position, -1).amax(1, keepdim=True), last)
        queries |= ~queries.any(1, keepdim=True) & (position == last)
        # Outputs are read at the end of the prompt, at the end of the sequence, and before text that is trained on.
        read = (position == last) | (position == torch.where(valid, position, -1).amax(1, keepdim=True))
        if labels is not None:
            read |= torch.nn.functional.pad((labels != ignore_index)[:, 1:] & ~audio_mask[:, 1:], (0, 1))
        required = (read & audio_mask).gather(1, audio_index)
        query_index, query_valid = positions_of(queries)
        return cls(
            audio_mask, valid, audio_index, audio_valid, query_index, query_valid, prompt & ~audio_mask, required
        )


def positions_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the true entries of each row, padded on the right, and which of them are true ones."""
    count = mask.sum(1, keepdim=True)
    width = int(count.max()) if mask.numel() else 0
    index = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return index, torch.arange(width, device=mask.device) < count


def find_audio(input_ids: Tensor | None, audio_token_id: int | None, audio_mask: Tensor | None, what: str) -> Tensor:
    """The audio mask of a forward, from its placeholders or as given.

    Args:
        input_ids: Long tensor ``[B, L]`` on the CPU, or None for a forward on embeddings.
        audio_token_id: Id of the placeholder.
        audio_mask: Bool tensor ``[B, L]`` that the caller gave.
        what: Name of the model, for the error.

    Returns:
        Bool tensor ``[B, L]``.

    Raises:
        AudioMaskError: If neither says where the audio is.
    """
    if audio_mask is not None and (input_ids is None or audio_mask.shape[1] == input_ids.shape[1]):
        return audio_mask.bool()
    if input_ids is None:
        raise AudioMaskError(
            f"{what} got inputs_embeds without input_ids, so it cannot be told which positions are audio. Pass "
            "input_ids, or say where the audio is: AudioTokenPruner(...)(model, audio_mask=mask), a bool mask [B, L]."
        )
    if audio_token_id is None:
        raise AudioMaskError(
            f"The config of {what} names no audio placeholder id. Set it (config.audio_token_id), or say where the "
            "audio is: AudioTokenPruner(...)(model, audio_mask=mask) with a bool mask [B, L]."
        )
    return input_ids == audio_token_id
