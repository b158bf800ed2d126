"""Several questions about one recording, which is read once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models.caches import cache_argument
from headrouter_pl.models.encoded import encode_windows

if TYPE_CHECKING:
    from transformers import Cache, ProcessorMixin

__all__ = ["AudioReader", "EncodedPrompt", "EncodedPrompter", "ReadAudio", "multiplied_in_place", "split_at_audio"]


@dataclass
class ReadAudio:
    """A prompt up to the end of its audio, as the decoder has it in memory.

    Attributes:
        ids: Its tokens ``[1, n]``.
        cache: Keys and values of these tokens.
    """

    ids: Tensor
    cache: Cache


class AudioReader:
    """Answers questions about a recording with stock ``generate``, which goes on from the recording's cache.

    Args:
        model: An audio language model of a decoder with full attention, in evaluation mode.
        processor: Its processor, with a chat template that puts audio before text.
        max_new_tokens: Enough for an answer.
    """

    def __init__(self, model: Any, processor: ProcessorMixin, max_new_tokens: int = 48) -> None:
        self.model = model
        self.processor: Any = processor
        self.max_new_tokens = max_new_tokens

    @torch.inference_mode()
    def read(self, audio: np.ndarray) -> ReadAudio:
        """Encodes a waveform (float32 ``[n]``, at the processor's rate) and prefills the decoder with it."""
        from transformers import DynamicCache

        inputs = self.processor(text=_up_to_audio(self.processor), audio=audio)
        inputs.pop("attention_mask")  # one row without padding: attention is causal and needs no mask in memory
        inputs = {name: value.to(self.model.device) for name, value in inputs.items() if isinstance(value, Tensor)}
        inputs["input_features"] = inputs["input_features"].to(self.model.dtype)
        cache = DynamicCache()
        with multiplied_in_place(self.model):
            self.model(**inputs, **{cache_argument(self.model): cache}, use_cache=True, logits_to_keep=1)
        return ReadAudio(inputs["input_ids"], cache)

    @torch.inference_mode()
    def answer(self, read: ReadAudio, prompt: str) -> str:
        """The greedy answer to one question; the cache is as before afterwards."""
        ids = _with_question(self.processor, read.ids, prompt)
        try:
            with multiplied_in_place(self.model):
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    **{cache_argument(self.model): read.cache},
                    do_sample=False,
                    max_new_tokens=self.max_new_tokens,
                )
        finally:
            read.cache.crop(read.ids.shape[1] - read.cache.get_seq_length())
        return self.processor.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


@dataclass
class EncodedPrompt:
    """A prompt up to the end of its audio, encoded and not yet seen by the decoder.

    Attributes:
        ids: Its tokens ``[1, n]``.
        features: The encoder's outputs ``[1, audio tokens, width]``.
        start: Position of the first audio token; they stand side by side.
    """

    ids: Tensor
    features: Tensor
    start: int


class EncodedPrompter:
    """Makes inputs of a model whose encoder has been taken out, for several questions about a recording.

    Args:
        model: An Audio Flamingo 3 model, in evaluation mode.
        processor: Its processor, with a chat template that puts audio before text.
    """

    def __init__(self, model: Any, processor: ProcessorMixin) -> None:
        self.model = model
        self.processor: Any = processor

    @torch.inference_mode()
    def encode(self, audio: np.ndarray) -> EncodedPrompt:
        """Encodes a waveform (float32 ``[n]``, at the processor's rate); the encoder must be in its place for this."""
        inputs = self.processor(text=_up_to_audio(self.processor), audio=audio)
        features = encode_windows(self.model, inputs["input_features"], inputs["input_features_mask"])
        ids = inputs["input_ids"]
        start = int((ids[0] == self.model.config.audio_token_id).nonzero()[0])
        return EncodedPrompt(ids.to(self.model.device), features[None], start)

    def inputs(self, encoded: EncodedPrompt, prompt: str) -> dict[str, Tensor]:
        """What ``generate`` takes for one question, under :func:`headrouter_pl.models.encoded.encoded_audio`."""
        ids = _with_question(self.processor, encoded.ids, prompt)
        mask = torch.ones(encoded.features.shape[:2], dtype=torch.long, device=ids.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "input_features": encoded.features,
            "input_features_mask": mask,
        }


@contextmanager
def multiplied_in_place(model: Any) -> Iterator[None]:
    """Spares a copy of the output head's weights in each prefill.

    The head is given the last position as a slice, whose strides make torch copy the weights on a CPU in bfloat16
    before it multiplies: 0.2 s of each prefill of the pocket model, pruned or not. Here it is given strides of its own.

    Args:
        model: A transformers model with an output head.
    """

    def own_strides(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0].contiguous()
        return hidden.flatten(0, -2).unflatten(0, hidden.shape[:-1]), *args[1:]

    hook = model.get_output_embeddings().register_forward_pre_hook(own_strides)
    try:
        yield
    finally:
        hook.remove()


def split_at_audio(processor: Any, prompt: str) -> tuple[str, str]:
    """Renders a question about one recording by the chat template.

    Args:
        processor: A processor with an ``audio_token`` and a chat template that puts audio before text.
        prompt: The question.

    Returns:
        The text before the audio token, and the text after it, up to where the answer begins.

    Raises:
        HeadRouterError: If the template renders anything but a text, one audio token and a text.
    """
    conversation = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    audio = processor.audio_token
    before, _, after = text.partition(audio)
    if not after or audio in after:
        raise HeadRouterError(
            f"the chat template does not render {prompt!r} as a text, one {audio} and a text: {text!r}"
        )
    return before, after


def _up_to_audio(processor: Any) -> str:
    """What every prompt begins with, its audio included."""
    return split_at_audio(processor, "?")[0] + processor.audio_token


def _with_question(processor: Any, ids: Tensor, prompt: str) -> Tensor:
    """Tokens ``[1, n]`` of a prompt up to its audio, with those that follow."""
    question = processor.tokenizer(split_at_audio(processor, prompt)[1], add_special_tokens=False)["input_ids"]
    return torch.cat([ids, torch.tensor([question], device=ids.device)], dim=1)
