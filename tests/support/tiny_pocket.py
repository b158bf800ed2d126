"""A tiny random model with the pocket model's processor, and questions about scenes of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
)

from headrouter_pl.data.pocket.benchmark import PocketBenchmark, PocketItem
from headrouter_pl.models.pocket import AUDIO_TOKEN, CHAT_TEMPLATE
from headrouter_pl.scorers import Scorer, ScoringInputs

FAMILY = "audioflamingo3"
PROMPTS = ("w40 w41 w42", "w50 w51", "w60 w61 w62 w63")


def make_processor(template: str = CHAT_TEMPLATE) -> Any:
    """The pocket model's template over words "w4" ... and windows of one second."""
    special = {"<pad>": 0, "<unk>": 1, "<|im_start|>": 2, "<|im_end|>": 3, AUDIO_TOKEN: tiny.AUDIO_ID}
    vocabulary = special | {f"w{i}": i for i in range(4, tiny.VOCAB) if i != tiny.AUDIO_ID}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=[AUDIO_TOKEN, "<|im_start|>"],
    )  # fmt: skip
    features = WhisperFeatureExtractor(feature_size=tiny.MELS, chunk_length=1)
    return AudioFlamingo3Processor(features, tokenizer, chat_template=template)


def build(**_: Any) -> Any:
    model = AudioFlamingo3ForConditionalGeneration._from_config(config()).eval()
    tiny._randomise(model, 0)
    return model


def config() -> Any:
    found = tiny.FAMILIES[FAMILY].config(4)
    found.audio_config.max_source_positions = 50
    return found


def noise(seed: int, seconds: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=int(16_000 * seconds)).astype(np.float32) * 0.1


class KnownScorer(Scorer):
    """Keeps what is evidence, and the tokens after it; for one type of question, those before it."""

    def __init__(self, first: str = "voice") -> None:
        self.first = first
        self.evidence: list[list[tuple[int, int]]] = []
        self.types: list[str] = []

    def score(self, inputs: ScoringInputs) -> Tensor:
        (spans,), (kind,) = self.evidence, self.types
        places = torch.arange(inputs.audio_mask.shape[1], dtype=torch.float32)[None]
        scores = -places if kind == self.first else places.clone()
        for first, last in spans:
            scores[:, first:last] += 1000
        return scores


def make_questions(folder: Path) -> PocketBenchmark:
    """Three scenes and five questions, of two types."""
    items = []
    for number, (seconds, prompts) in enumerate(((1, PROMPTS[:2]), (1, PROMPTS[:2]), (2, PROMPTS[2:]))):
        soundfile.write(folder / f"{number}.wav", noise(number, seconds), 16_000, subtype="FLOAT")
        for task, prompt in zip(("gender", "transcription"), prompts, strict=False):
            kind = "voice" if task == "gender" else "semantic"
            options = ("w9", "w10") if task == "gender" else ()
            items.append(PocketItem(f"test/{number}/{task}", f"{number}.wav", seconds, task, kind, prompt, "w9",
                                    options, 0.5, ((0.0, 1.0),), ((0, 25),)))  # fmt: skip
    return PocketBenchmark(folder, items)
