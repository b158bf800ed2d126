"""Names that the Python blocks of the documentation may use without saying where they come from.

``model``
    A tiny random Audio Flamingo 3: four decoder layers of four heads, 25 audio tokens a second.
``processor``
    Its processor, whose tokens are single characters.
``inputs``
    One question about two seconds of noise, as the processor gives it.
``module``
    A LALMModule that holds ``model`` and ``processor``, and answers with four tokens.
``data``, ``datamodule``
    An AudioPromptDataModule over six recordings of noise, three batches in each stage, training included.
``labelled``
    A data module whose validation batches also have ``types`` and ``evidence``.
``image_logger``
    A Lightning logger that takes images; its ``pictures`` is the set of their names.

The working directory is a folder of the page's own, with ``recordings.jsonl``, its two WAV files and ``my.wav``. The
pocket model's loaders give ``model`` and ``processor``, and still refuse wrong arguments.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import soundfile
import tiny
import tiny_pocket
from lightning.pytorch.loggers import Logger
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import AudioFlamingo3Processor, PreTrainedTokenizerFast, WhisperFeatureExtractor

from headrouter_pl import LALMModule
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule

QUESTIONS = (("What does the voice say?", "semantic"), ("Who is speaking?", "voice"), ("Which sound is it?", "sound"))
RATE = 16_000
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!'-\n"


def make_processor() -> Any:
    """The pocket model's chat template over characters, and windows of one second."""
    special = {"<pad>": 0, "<unk>": 1, "<|im_start|>": 2, "<|im_end|>": 3, tiny_pocket.AUDIO_TOKEN: tiny.AUDIO_ID}
    vocabulary = special | {character: tiny.TEXT_LOW + i for i, character in enumerate(CHARACTERS)}
    assert tiny.TEXT_LOW + len(CHARACTERS) <= tiny.TEXT_HIGH
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    letters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=[tiny_pocket.AUDIO_TOKEN, "<|im_start|>"],
    )  # fmt: skip
    features = WhisperFeatureExtractor(feature_size=tiny.MELS, chunk_length=1)
    return AudioFlamingo3Processor(features, tokenizer, chat_template=tiny_pocket.CHAT_TEMPLATE)


def records(count: int = 6) -> list[AudioPrompt]:
    return [AudioPrompt(tiny_pocket.noise(i, 1 + i % 2), QUESTIONS[i % 3][0], "yes", f"clip {i}") for i in range(count)]


class Labelled(L.LightningDataModule):
    """The questions' types, and as evidence the first half of each audio."""

    def __init__(self, data: AudioPromptDataModule) -> None:
        super().__init__()
        self.data = data
        self.processor = data.processor

    def val_dataloader(self) -> DataLoader[Any]:
        types = dict(QUESTIONS)
        batches, asked = [], iter(records())
        for batch in self.data.val_dataloader():
            samples = [next(asked) for _ in batch["keys"]]
            assert [sample.key for sample in samples] == batch["keys"]
            evidence = [[(0, 25 * len(sample.audio) // (2 * RATE))] for sample in samples]
            batches.append({**batch, "types": [types[sample.prompt] for sample in samples], "evidence": evidence})
        return DataLoader(batches, batch_size=None)


class ImageLogger(Logger):
    """Takes images, as W&B's logger does, and remembers their names."""

    name, version = "images", 0

    def __init__(self) -> None:
        super().__init__()
        self.pictures: set[str] = set()

    def log_image(self, key: str, images: list[Any]) -> None:
        assert images
        self.pictures.add(key)

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def stand_in(loader: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """Takes what a loader of the pocket model takes, and gives the tiny one."""
    signature = inspect.signature(loader)

    def load(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return names["model"], names["processor"]

    return load


def make_names() -> dict[str, Any]:
    """The names above, anew."""
    processor, model = make_processor(), tiny_pocket.build()
    found = records()
    data = AudioPromptDataModule(processor, train=found, validate=found, test=found, predict=found, batch_size=2)
    (question,) = [record for record in records(2) if len(record.audio) == 2 * RATE]
    return {
        "model": model,
        "processor": processor,
        "inputs": data.collate([question])["inputs"],
        "module": LALMModule(model, processor, task="question", generate={"max_new_tokens": 4}),
        "data": data,
        "datamodule": data,
        "labelled": Labelled(data),
        "image_logger": ImageLogger(),
    }


def write_recordings(folder: Path) -> None:
    """A list of two recordings, as a user may have one."""
    rows: Iterator[dict[str, str]] = (
        {"audio": f"{i}.wav", "prompt": question, "answer": "yes"} for i, (question, _) in enumerate(QUESTIONS[:2])
    )
    for i, name in enumerate(("0", "1", "my")):
        soundfile.write(folder / f"{name}.wav", tiny_pocket.noise(i, 1), RATE)
    (folder / "recordings.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
