"""Questions about audio as a model's inputs, by its own processor and chat template."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.records import AudioPrompt

if TYPE_CHECKING:
    from transformers import ProcessorMixin

__all__ = ["audio_extractor", "encode_chats"]

Chat = list[dict[str, Any]]


def audio_extractor(processor: ProcessorMixin) -> Any:
    """The part of a processor that takes audio, whatever the processor calls it."""
    found = getattr(processor, "feature_extractor", None)
    return processor.audio_processor if found is None else found


def encode_chats(
    processor: ProcessorMixin,
    records: Sequence[AudioPrompt],
    clips: Sequence[Sequence[np.ndarray]],
    *,
    answered: bool = False,
    system_prompt: str | None = None,
) -> dict[str, Tensor]:
    """Tokenizes questions with their audio, padded on the left.

    Args:
        processor: The model's processor.
        records: B questions, at least one.
        clips: Audio of each, float32 ``[n]`` at the processor's rate.
        answered: Whether the answers follow, as in training.
        system_prompt: Said by the system before the question; the chat template's own if None.

    Returns:
        What the model takes; with ``labels`` int64 ``[B, L]``, -100 but for the answers, if answered.

    Raises:
        AudioError: If the chat template leaves out the audio, or changes the question once it is answered.
    """
    mistral = type(getattr(processor, "tokenizer", None)).__name__ == "MistralCommonBackend"
    encode = _encode_mistral if mistral else _encode
    return encode(processor, records, clips, answered, system_prompt)


def _encode(
    processor: Any,
    records: Sequence[AudioPrompt],
    clips: Sequence[Sequence[np.ndarray]],
    answered: bool,
    system_prompt: str | None,
) -> dict[str, Tensor]:
    """By text with placeholders, as nearly all processors take it."""
    chats = [_chat(record, [{"type": "audio"} for _ in record.parts()], system_prompt) for record in records]
    prompts = [processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    placeholder = getattr(processor, "audio_token", None)
    for record, prompt in zip(records, prompts, strict=True):
        if isinstance(placeholder, str) and placeholder not in prompt:
            raise AudioError(
                f"the chat template of {type(processor).__name__} leaves out the audio of "
                f"{(record.key or record.prompt)!r}: there is no {placeholder!r} in {prompt!r}."
            )
    texts = prompts
    if answered:
        both = [[*chat, _answer(record)] for chat, record in zip(chats, records, strict=True)]
        texts = [processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=False) for chat in both]
    inputs = processor(
        text=texts,
        audio=[part for parts in clips for part in parts],
        sampling_rate=audio_extractor(processor).sampling_rate,
        # Of the text alone: how to pad audio is for the processor to say, some take whole windows only.
        text_kwargs={"padding": True, "padding_side": "left"},
        return_tensors="pt",
    )
    inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    if answered:
        lengths = []
        for prompt, text in zip(prompts, texts, strict=True):
            if not text.startswith(prompt):
                raise AudioError(
                    "the chat template renders the prompt differently once it is answered; cannot label it"
                )
            lengths.append(len(processor.tokenizer(text[len(prompt) :], add_special_tokens=False)["input_ids"]))
        inputs["labels"] = _labels(inputs, lengths)
    return inputs


def _encode_mistral(
    processor: Any,
    records: Sequence[AudioPrompt],
    clips: Sequence[Sequence[np.ndarray]],
    answered: bool,
    system_prompt: str | None,
) -> dict[str, Tensor]:
    """By whole conversations with the audio in them, as mistral-common tokenizes them for Voxtral."""
    rate = audio_extractor(processor).sampling_rate
    chats = [
        _chat(record, [{"type": "audio", "base64": _wave(part, rate)} for part in parts], system_prompt)
        for record, parts in zip(records, clips, strict=True)
    ]
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt",
                "processor_kwargs": {"padding": True, "padding_side": "left"}}  # fmt: skip
    inputs = dict(processor.apply_chat_template(chats, **settings))
    if answered:
        # Its templates take no answer but the beginning of one; they would end it with this token.
        tokenizer = processor.tokenizer
        ends = [
            [*tokenizer.encode(record.answer, add_special_tokens=False), tokenizer.eos_token_id] for record in records
        ]
        rows = [
            torch.cat((ids[mask.bool()], torch.tensor(end)))
            for ids, mask, end in zip(inputs["input_ids"], inputs["attention_mask"], ends, strict=True)
        ]
        longest = max(map(len, rows))
        lengths = torch.tensor([len(row) for row in rows])
        inputs["input_ids"] = torch.stack(
            [torch.nn.functional.pad(row, (longest - len(row), 0), value=tokenizer.pad_token_id) for row in rows]
        )
        inputs["attention_mask"] = (torch.arange(longest) >= longest - lengths[:, None]).long()
        inputs["labels"] = _labels(inputs, [len(end) for end in ends])
    return inputs


def _chat(record: AudioPrompt, audio: list[dict[str, str]], system_prompt: str | None) -> Chat:
    chat: Chat = [{"role": "user", "content": [*audio, {"type": "text", "text": record.prompt}]}]
    if system_prompt is not None:
        chat.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    return chat


def _answer(record: AudioPrompt) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": record.answer}]}


def _labels(inputs: dict[str, Tensor], lengths: Sequence[int]) -> Tensor:
    """The last tokens of each row, ``lengths`` of them, wherever the padding is."""
    mask = inputs["attention_mask"]
    ends = mask.cumsum(1)
    answer = (ends > ends[:, -1:] - torch.tensor(lengths)[:, None]) & mask.bool()
    return inputs["input_ids"].masked_fill(~answer, -100)


def _wave(samples: np.ndarray, rate: int) -> str:
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV", subtype="FLOAT")
    return base64.b64encode(out.getvalue()).decode("ascii")
