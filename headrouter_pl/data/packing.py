"""Training batches with several questions on one recording, which is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headrouter_pl.data.audio import AudioError
from headrouter_pl.models.answering import split_at_audio

if TYPE_CHECKING:
    from transformers import ProcessorMixin

__all__ = ["PackedCollator", "PackedSample"]


@dataclass(frozen=True, eq=False)
class PackedSample:
    """One recording and what is asked about it.

    Attributes:
        features: float16 ``[frames, width]``, the encoder's outputs: one frame for each audio token.
        questions: Prompts with their answers, at least one.
        key: What to call the sample.
        tasks: Task of each question, to score by; none if empty.
        positions: int ``[frames]``, rising: where each frame stands in the recording, if some are left out.
    """

    features: np.ndarray
    questions: Sequence[tuple[str, str]]
    key: str = ""
    tasks: Sequence[str] = ()
    positions: np.ndarray | None = None


class PackedCollator:
    """Makes training batches for a model without its encoder, see :class:`headrouter_pl.models.encoded.EncodedAudio`.

    A row is a prefix, which ends with the audio, then one question with its answer after another. A question sees the
    prefix and itself, and its positions go on from the prefix, so that every answer's loss is what it would be if the
    question had been asked alone. Labels are on answers and their end tokens. Rows are padded on the right.

    The mask is boolean and 4-D: for models with ``attn_implementation="sdpa"`` only (``"eager"`` adds masks).

    Args:
        processor: A processor with a tokenizer, an ``audio_token`` and a chat template that puts audio before text and
            ends answers with the tokenizer's end-of-sequence token.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        prompt = processor.audio_token.join(split_at_audio(processor, "question"))
        answered = self._answered("question", "answer")
        if not answered.startswith(f"{prompt}answer{self.tokenizer.eos_token}"):
            raise AudioError(f"the chat template ends an answer without {self.tokenizer.eos_token!r}: {answered!r}")

    def __call__(self, samples: Sequence[PackedSample]) -> dict[str, Any]:
        """A batch: ``inputs``, with ``labels``, ``keys``, ``answers`` and, if known, ``tasks`` (lists for each row).

        For n rows of up to L tokens and up to F audio frames, ``inputs`` has ``input_ids``, ``position_ids`` and
        ``labels`` (int64 ``[n, L]``), ``attention_mask`` (bool ``[n, 1, L, L]``), ``input_features`` (float32
        ``[n, F, width]``) and ``input_features_mask`` (int64 ``[n, F]``).
        """
        rows = [self._row(sample) for sample in samples]
        length = max(len(row[0]) for row in rows)
        ids, positions, labels, segments = (
            torch.tensor([row[i] + [fill] * (length - len(row[0])) for row in rows])
            for i, fill in enumerate((self.tokenizer.pad_token_id, 0, -100, -1))
        )
        # Padding, as segment -1, sees the prefix: a query that sees nothing would be NaN.
        seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        frames = max(len(sample.features) for sample in samples)
        features = torch.zeros(len(samples), frames, samples[0].features.shape[1])
        features_mask = torch.zeros(len(samples), frames, dtype=torch.long)
        for row, sample in enumerate(samples):
            features[row, : len(sample.features)] = torch.from_numpy(np.asarray(sample.features, dtype=np.float32))
            features_mask[row, : len(sample.features)] = 1
        batch: dict[str, Any] = {
            "inputs": {
                "input_ids": ids,
                "attention_mask": (seen & torch.ones(length, length, dtype=torch.bool).tril())[:, None],
                "position_ids": positions,
                "input_features": features,
                "input_features_mask": features_mask,
                "labels": labels,
            },
            "keys": [sample.key for sample in samples],
            "answers": [[answer for _, answer in sample.questions] for sample in samples],
        }
        if samples[0].tasks:
            batch["tasks"] = [list(sample.tasks) for sample in samples]
        return batch

    def length(self, frames: int, questions: Sequence[tuple[str, str]]) -> int:
        """Tokens of the row of a recording of so many frames, for the sampler."""
        parts = [self._question(*question) for question in questions]
        return len(parts[0][0]) + frames + sum(len(prompt) + len(answer) for _, prompt, answer in parts)

    def _row(self, sample: PackedSample) -> tuple[list[int], list[int], list[int], list[int]]:
        """Ids, positions, labels and segments: 0 for the prefix, then 1, 2, ... for the questions."""
        if not sample.questions:
            raise AudioError(f"{sample.key or 'a sample'}: no questions")
        parts = [self._question(*question) for question in sample.questions]
        ids = parts[0][0] + [self.processor.audio_token_id] * len(sample.features)
        prefix = len(ids)
        frames = np.arange(len(sample.features)) if sample.positions is None else np.asarray(sample.positions)
        if frames.shape != (len(sample.features),) or (np.diff(frames, prepend=-1) < 1).any():
            raise AudioError(f"{sample.key or 'a sample'}: positions must rise, one for each frame")
        audio = len(parts[0][0])  # where it begins
        positions, labels, segments = [*range(audio), *(audio + frames).tolist()], [-100] * prefix, [0] * prefix
        after = positions[-1] + 1
        for number, (_, prompt, answer) in enumerate(parts, start=1):
            length = len(prompt) + len(answer)
            ids += prompt + answer
            positions += range(after, after + length)
            # A question begins with its prompt, unlabelled: the answer before it is not asked to predict it.
            labels += [-100] * len(prompt) + answer
            segments += [number] * length
        return ids, positions, labels, segments

    def _question(self, prompt: str, answer: str) -> tuple[list[int], list[int], list[int]]:
        """Ids of what stands before the audio, between it and the answer, and of the answer with its end."""
        parts = split_at_audio(self.processor, prompt)
        # The answer by itself, as it follows the prompt in generation: no token runs over the border.
        before, after, said = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*parts, answer))
        return before, after, [*said, self.tokenizer.eos_token_id]

    def _answered(self, prompt: str, answer: str) -> str:
        conversation = [
            {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": prompt}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        return self.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
