"""Running an Audio Flamingo 3 model on outputs of its encoder, computed beforehand, instead of on mel features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from headrouter_pl.errors import HeadRouterError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

__all__ = ["EncodedAudio", "encode_audio", "encode_windows", "encoded_audio", "run_encoder"]


class _Passthrough(nn.Module):
    """Stands in the encoder's place: what comes in has been encoded."""

    def forward(self, input_features: Tensor, input_features_mask: Tensor | None = None, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(last_hidden_state=input_features)

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        return input_lengths, input_lengths


class EncodedAudio:
    """Takes the encoder out of a model, until :meth:`restore`.

    The stock forward (and ``generate``) then takes ``input_features`` ``[n, frames, width]``, the encoder's outputs of
    each recording, with its windows joined and padded on the right, and ``input_features_mask`` ``[n, frames]``. Each
    recording has as many placeholders in ``input_ids`` as its mask has ones. The encoder does not follow the model to
    another device while it is out.

    Args:
        model: An Audio Flamingo 3 model, in a PEFT model or not.

    Raises:
        HeadRouterError: If the model has no ``audio_tower`` before a ``multi_modal_projector``, or lost it already.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owner = _owner(model)
        self.encoder: nn.Module = self._owner.audio_tower
        if isinstance(self.encoder, _Passthrough):
            raise HeadRouterError("The model's encoder has been taken out already.")
        self._owner.audio_tower = _Passthrough()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block, the encoder is in its place, wherever it is outside."""
        now, self._owner.audio_tower = self._owner.audio_tower, self.encoder
        try:
            yield
        finally:
            self._owner.audio_tower = now

    @property
    def restored(self) -> bool:
        """Whether the encoder is in its place again."""
        return self._owner.audio_tower is self.encoder

    def restore(self) -> None:
        """Puts the encoder back; more than once does no harm."""
        self._owner.audio_tower = self.encoder


@contextmanager
def encoded_audio(model: nn.Module) -> Iterator[EncodedAudio]:
    """Takes the encoder out of a model inside the block; see :class:`EncodedAudio`."""
    taken = EncodedAudio(model)
    try:
        yield taken
    finally:
        taken.restore()


@torch.no_grad()
def encode_windows(model: nn.Module, input_features: Tensor, input_features_mask: Tensor) -> Tensor:
    """The encoder's outputs of one recording, as the stock forward hands them to the projector.

    Args:
        model: An Audio Flamingo 3 model, in a PEFT model or not, in evaluation mode.
        input_features: Mel features ``[windows, mels, frames]`` of the recording, as the processor gives them.
        input_features_mask: Their mask, ``[windows, frames]``.

    Returns:
        ``[tokens, width]`` in the encoder's dtype: one row for each audio token of the recording.
    """
    states, lengths = run_encoder(model, input_features, input_features_mask)
    return states[torch.arange(states.shape[1], device=states.device) < lengths[:, None]]


def run_encoder(model: nn.Module, input_features: Tensor, input_features_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's outputs ``[windows, tokens, width]``, with gradients, and the tokens of each, int64 ``[windows]``.

    Args:
        model: An Audio Flamingo 3 model, in a PEFT model or not.
        input_features: Mel features ``[windows, mels, frames]``, as the processor gives them.
        input_features_mask: Their mask, ``[windows, frames]``.
    """
    encoder: Any = _owner(model).audio_tower
    if isinstance(encoder, _Passthrough):
        raise HeadRouterError("The model's encoder has been taken out; restore it to encode.")
    weight = next(encoder.parameters())
    mask = input_features_mask.to(weight.device)
    states = encoder(input_features.to(weight), input_features_mask=mask, return_dict=True).last_hidden_state
    _, lengths = encoder._get_feat_extract_output_lengths(mask.sum(-1).long())
    return states, lengths


def encode_audio(model: nn.Module, processor: ProcessorMixin, audio: np.ndarray) -> np.ndarray:
    """The encoder's outputs of one waveform, to be kept on disk.

    Args:
        model: As for :func:`encode_windows`.
        processor: Its processor.
        audio: float32 ``[n]`` at the processor's rate.

    Returns:
        float16 ``[tokens, width]``, 25 tokens a second for the pocket model.
    """
    inputs = processor(text=processor.audio_token, audio=audio)
    states = encode_windows(model, inputs["input_features"], inputs["input_features_mask"])
    return states.to("cpu", torch.float16).numpy()


def _owner(model: nn.Module) -> Any:
    """The module that holds the encoder and the projector."""
    for module in model.modules():
        if {"audio_tower", "multi_modal_projector"} <= dict(module.named_children()).keys():
            return module
    raise HeadRouterError(f"{type(model).__name__} has no 'audio_tower' before a 'multi_modal_projector'.")
