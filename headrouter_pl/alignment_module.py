"""Trains an adapter of the encoder to say what is heard in the decoder's words, before the decoder is trained."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from headrouter_pl.alignment import Alignment, Utterance, disturb, pad_utterances, rescale
from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.lalm_module import LALMModule
from headrouter_pl.models.checkpoints import ENCODER, PROJECTOR, find_projectors
from headrouter_pl.models.encoded import run_encoder

__all__ = ["AlignmentModule"]

_TILT = 0.12  # of log-mel units, 10 dB each 0.25: a filter drawn anew for each window
_BANDS, _BAND_SHARE = 2, 0.15  # stretches of mel bins that are blotted out, and the most of all bins in one
_GAPS, _GAP_SHARE = 12, 0.004  # stretches of frames: in 30 s, up to 0.12 s each


class AlignmentModule(LALMModule):
    """A `LALMModule` whose encoder and projector learn by :class:`headrouter_pl.alignment.Alignment`.

    No layer of the decoder runs. Its adapter, if ``lora`` names decoder layers too, stays as it begins, without effect,
    and is saved with the encoder's: the decoder's training goes on with ``LALMModule(adapter=folder)``. The data module
    gives ``vocabulary()``, the labels of each attribute and all texts, and batches with ``inputs`` (mel features) and
    ``heard``, for each window its recordings: first and last frame, text, and labels.

    Args:
        **kwargs: As for `LALMModule`; with ``lora`` or ``adapter``, and ``train_projector``, without
            ``initial_checkpoint`` (begin with an ``adapter`` instead).
    """

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("initial_checkpoint") is not None:
            raise ConfigurationError("AlignmentModule begins with an adapter, not with an initial_checkpoint.")
        super().__init__(**kwargs)
        named = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        if not any(f".{ENCODER}." in name for name, _ in named) or not any(PROJECTOR in name for name, _ in named):
            raise HeadRouterError("AlignmentModule needs lora on layers of the audio_tower, and train_projector.")
        for name, parameter in named:
            parameter.requires_grad_(f".{ENCODER}." in name or PROJECTOR in name)
        self.alignment: Alignment | None = None  # made in setup, of the data's vocabulary
        self.figures = nn.ModuleDict()
        self._scales: deque[float] = deque(maxlen=50)

    def setup(self, stage: str) -> None:
        """Makes the loss for the data module's vocabulary."""
        if self.alignment is None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            if not hasattr(data, "vocabulary"):
                raise HeadRouterError(
                    f"AlignmentModule needs a data module with vocabulary(), got {type(data).__name__}."
                )
            labels, texts = data.vocabulary()
            embeddings: Any = self.model.get_input_embeddings()  # type: ignore[operator]
            self.alignment = Alignment(embeddings.weight, self.processor.tokenizer, labels, texts)
            self.figures.update({name: MeanMetric() for name in ("ctc", *self.alignment.number)})

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The loss of the recordings in some windows, under filters, blots and noise."""
        rng = np.random.default_rng([self.global_step, batch_idx, self.global_rank])
        loss, figures = self._align(batch, rng, augment=True)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["heard"]))
        for name, values in figures.items():
            self.log(f"train/{name}", float(np.mean(values)), batch_size=len(values))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs ``val/ctc``, in nats a token, and ``val/ATTRIBUTE``: how often the right label is the likeliest."""
        _, figures = self._align(batch, np.random.default_rng(0), augment=False)
        for name, values in figures.items():
            self.figures[name].update(torch.tensor(values, device=self.device))  # type: ignore[operator]

    def on_validation_epoch_start(self) -> None:
        """Forgets the figures of the validation before."""
        for metric in self.figures.values():
            metric.reset()  # type: ignore[operator]
            metric.update(0.0, 0.0)  # type: ignore[operator]  # of no weight: a process may hear none of an attribute

    def on_validation_epoch_end(self) -> None:
        """Logs the figures over all processes, which meet in one order, whatever each of them has heard."""
        values = {f"val/{name}": metric.compute() for name, metric in self.figures.items()}  # type: ignore[operator]
        self.log_dict({name: value for name, value in values.items() if value.isfinite()})

    def on_train_end(self) -> None:
        """Gives the projector's outputs the embeddings' standard deviation: what the decoder is used to."""
        if self._scales and self.alignment is not None:
            scale = torch.tensor(np.mean(self._scales), device=self.device)
            scale = self.trainer.strategy.reduce(scale, reduce_op="mean")
            for projector in find_projectors(self.model):
                rescale(projector, self.alignment.spread / float(scale))
            self._scales.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also keeps how large the projector's outputs have been."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["headrouter_scales"] = list(self._scales)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also reads how large the projector's outputs have been."""
        super().on_load_checkpoint(checkpoint)
        self._scales.extend(checkpoint.get("headrouter_scales", ()))

    def _align(
        self, batch: Mapping[str, Any], rng: np.random.Generator, *, augment: bool
    ) -> tuple[Tensor, dict[str, list[float]]]:
        assert self.alignment is not None
        mel = batch["inputs"]["input_features"]
        states, _ = run_encoder(
            self.model, _augmented(mel, rng) if augment else mel, batch["inputs"]["input_features_mask"]
        )
        utterances = [
            Utterance(row[first:last], text, labels)
            for row, heard in zip(states, batch["heard"], strict=True)
            for first, last, text, labels in heard
        ]
        features, lengths = pad_utterances(utterances, states.device)
        inside = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        if augment:
            features = disturb(features, features.detach()[inside].std(0), rng)
        (projector,) = find_projectors(self.model)
        projected = projector(features)
        if augment:
            self._scales.append(float(projected.detach()[inside].std()))
        embeddings: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        found: tuple[Tensor, dict[str, list[float]]] = self.alignment(
            projected.float(), lengths, utterances, embeddings.weight, rng
        )
        return found


def _augmented(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Log-mel features ``[n, mels, frames]`` through random filters, with stretches set to the mean (SpecAugment)."""
    mel = mel.clone()
    for row in mel:
        knots = torch.from_numpy(rng.normal(0, _TILT, (1, 1, 6))).to(row)
        row += F.interpolate(knots, size=len(row), mode="linear", align_corners=True)[0, 0, :, None]
        blank = row.mean()
        for count, share, axis in ((_BANDS, _BAND_SHARE, row), (_GAPS, _GAP_SHARE, row.t())):
            for _ in range(count):
                width = round(rng.uniform(0, share) * len(axis))
                start = int(rng.integers(len(axis) - width + 1))
                axis[start : start + width] = blank
    return mel
