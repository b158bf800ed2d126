"""A data module over (audio, prompt, answer) records, for any processor with a chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from headrouter_pl.data.audio import AudioError, read_audio

if TYPE_CHECKING:
    from transformers import ProcessorMixin


@dataclass(frozen=True, eq=False)
class AudioPrompt:
    """One question about one or several recordings.

    Attributes:
        audio: float32 samples ``[n]`` at the processor's rate, the path of a file, or several of either.
        prompt: The question.
        answer: The right answer; may be empty for prediction.
        key: What to call the sample in results.
    """

    audio: np.ndarray | str | Path | Sequence[np.ndarray | str | Path]
    prompt: str
    answer: str = ""
    key: str = ""

    def clips(self, sampling_rate: int) -> list[np.ndarray]:
        """The recordings as float32 ``[n]`` at ``sampling_rate``."""
        parts = [self.audio] if isinstance(self.audio, (np.ndarray, str, Path)) else list(self.audio)
        return [part if isinstance(part, np.ndarray) else read_audio(part, sampling_rate) for part in parts]


Records = Sequence[AudioPrompt] | str


class AudioPromptDataModule(L.LightningDataModule):
    """Batches of records, tokenized with the model's own processor and chat template.

    Validation, test and prediction batches end where the answer begins (left padding); training batches hold the answer
    too, with ``labels`` on it alone.

    Args:
        processor: The model's processor, or the name or path of a checkpoint that has it.
        train: Records to fit on, here and below: a list, or the path of a JSONL file (see :func:`read_records`).
        validate: Records for validation.
        test: Records for testing.
        predict: Records for prediction.
        batch_size: Samples per batch.
        num_workers: Processes that load audio.
    """

    def __init__(
        self,
        processor: ProcessorMixin | str,
        *,
        train: Records = (),
        validate: Records = (),
        test: Records = (),
        predict: Records = (),
        batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(processor, str):
            from transformers import AutoProcessor

            processor = AutoProcessor.from_pretrained(processor)
        self.processor = processor
        self.records: dict[str, Records] = {"train": train, "validate": validate, "test": test, "predict": predict}
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[AudioPrompt]:
        """Shuffled training batches, with labels."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[AudioPrompt]:
        """Validation batches."""
        return self._loader("validate")

    def test_dataloader(self) -> DataLoader[AudioPrompt]:
        """Test batches."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[AudioPrompt]:
        """Prediction batches."""
        return self._loader("predict")

    def _loader(self, stage: str, *, shuffle: bool = False) -> DataLoader[AudioPrompt]:
        records = self.records[stage]
        return DataLoader(
            read_records(records) if isinstance(records, str) else records,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=self.collate_train if stage == "train" else self.collate,
        )

    def collate(self, records: Sequence[AudioPrompt]) -> dict[str, Any]:
        """A batch to generate from: ``inputs``, ``answers`` and ``keys``."""
        return self._batch(records, [self._render(record) for record in records])

    def collate_train(self, records: Sequence[AudioPrompt]) -> dict[str, Any]:
        """A batch to train on: like :meth:`collate`, with the answers in the text and ``inputs["labels"]``."""
        prompts = [self._render(record) for record in records]
        texts = [self._render(record, answered=True) for record in records]
        tokenizer = self.processor.tokenizer
        batch = self._batch(records, texts)
        inputs = batch["inputs"]
        labels = inputs["input_ids"].clone()
        ends = inputs["attention_mask"].cumsum(1)
        lengths = ends[:, -1]
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            if not text.startswith(prompt):
                raise AudioError(
                    "the chat template renders the prompt differently once it is answered; cannot label it"
                )
            answer = len(tokenizer(text[len(prompt) :], add_special_tokens=False)["input_ids"])
            labels[row, ends[row] <= lengths[row] - answer] = -100
        labels[inputs["attention_mask"] == 0] = -100
        inputs["labels"] = labels
        return batch

    def _render(self, record: AudioPrompt, *, answered: bool = False) -> str:
        count = 1 if isinstance(record.audio, (np.ndarray, str, Path)) else len(record.audio)
        content = [{"type": "audio"} for _ in range(count)]
        conversation = [{"role": "user", "content": [*content, {"type": "text", "text": record.prompt}]}]
        if answered:
            conversation.append({"role": "assistant", "content": [{"type": "text", "text": record.answer}]})
        return self.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=not answered)

    def _batch(self, records: Sequence[AudioPrompt], texts: list[str]) -> dict[str, Any]:
        rate = self.processor.feature_extractor.sampling_rate
        clips = [record.clips(rate) for record in records]
        for record, parts in zip(records, clips, strict=True):
            self._warn_if_cut(record, max(len(part) for part in parts) / rate)
        inputs = self.processor(
            text=texts,
            audio=[part for parts in clips for part in parts],
            sampling_rate=rate,
            # Of the text alone: how to pad audio is for the processor to say, some encoders take whole windows only.
            text_kwargs={"padding": True, "padding_side": "left"},
            return_tensors="pt",
        )
        return {
            "inputs": {name: value for name, value in inputs.items() if isinstance(value, Tensor)},
            "answers": [record.answer for record in records],
            "keys": [record.key for record in records],
        }

    def _warn_if_cut(self, record: AudioPrompt, seconds: float) -> None:
        limit = getattr(self.processor, "max_audio_len", None)
        if limit and seconds > limit:
            rank_zero_warn(
                f"{record.key or record.prompt!r}: {seconds:.1f} s of audio, of which the processor cuts the last "
                f"{seconds - limit:.1f} s (processor.max_audio_len is {limit} s)."
            )


def read_records(path: str | Path) -> list[AudioPrompt]:
    """Reads records from a JSONL file.

    Args:
        path: One JSON object a line with ``audio`` (a path, relative to the file, or a list of them), ``prompt``, and
            perhaps ``answer`` and ``key``; without a key a record is called by its line number.

    Raises:
        AudioError: If a line is not such an object; it names the line.
    """
    path = Path(path)
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            audio = [row["audio"]] if isinstance(row["audio"], str) else row["audio"]
            paths = [path.parent / name for name in audio]
            if not paths:
                raise ValueError("no audio")
            if not isinstance(row["prompt"], str):
                raise TypeError(f"prompt is {row['prompt']!r}")
            answer, key = row.get("answer"), row.get("key")
            records.append(
                AudioPrompt(
                    paths, row["prompt"], "" if answer is None else str(answer), str(number if key is None else key)
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise AudioError(f"{path}, line {number} is not a record with 'audio' and 'prompt': {error!r}") from error
    return records
