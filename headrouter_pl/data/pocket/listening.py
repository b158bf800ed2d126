"""Training data of the pocket model's encoder: windows drawn and rendered as they are heard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from headrouter_pl.data.bucketing import LengthBucketSampler, ResumableDataLoader
from headrouter_pl.data.pocket.pools import Pools
from headrouter_pl.data.pocket.questions import labels_of, spoken_text
from headrouter_pl.data.pocket.scenes import Scene, render
from headrouter_pl.data.pocket.training import PocketDataModule
from headrouter_pl.data.pocket.windows import (
    draw_phrase_window,
    draw_sentence_window,
    draw_varied_window,
    draw_window,
    heard_in,
)

__all__ = ["PocketListeningDataModule"]

Draw = Callable[[np.random.Generator, Pools], Scene]

_SHARES: dict[Draw, float] = {
    draw_varied_window: 0.45,
    draw_window: 0.3,
    draw_sentence_window: 0.15,
    draw_phrase_window: 0.1,
}
"""How often each kind of window is heard."""

_STREAM = 1 << 21  # of the seed, apart from those of the cached windows and of the questions


class _Drawn(Dataset[dict[str, Any]]):
    """Windows by number: mel features, and the recordings that are heard in them."""

    def __init__(self, pools: Pools, processor: Any, size: int, seed: int, shares: dict[Draw, float]) -> None:
        self.pools, self.processor, self.size, self.seed = pools, processor, size, seed
        self.draws, self.shares = list(shares), np.array(list(shares.values()))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, _STREAM, index])
        scene = self.draws[int(rng.choice(len(self.draws), p=self.shares))](rng, self.pools)
        audio = render(scene, self.pools.library)
        return {
            **self.processor(text=self.processor.audio_token, audio=audio),
            "heard": list(heard_in(scene, self.pools.library)),
        }


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    inputs = {name: torch.cat([row[name] for row in rows]) for name in ("input_features", "input_features_mask")}
    return {"inputs": inputs, "heard": [row["heard"] for row in rows]}


class PocketListeningDataModule(PocketDataModule):
    """Windows of 30 s full of recordings, for :class:`headrouter_pl.alignment_module.AlignmentModule`.

    No window is heard twice in an epoch. Those of :class:`PocketDataModule` are encoded, by the encoder as it comes,
    for :class:`headrouter_pl.callbacks.AlignProjector` to begin with.

    Args:
        samples: Windows to train on.
        batch_size: Windows in a batch.
        validation_samples: Windows to validate on, of clips held out.
        windows: As for `PocketDataModule`, as are the following.
        varied_windows: The same.
        seed: Of the windows.
        cache: :func:`headrouter_pl.wheels.cache_root` if None.
    """

    def __init__(
        self,
        samples: int = 3200,
        batch_size: int = 2,
        validation_samples: int = 60,
        windows: int = 400,
        varied_windows: int = 400,
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__(
            stages=[],
            windows=windows,
            varied_windows=varied_windows,
            sparse_windows=0,
            phrase_windows=0,
            sentence_windows=0,
            validation_windows=0,
            seed=seed,
            cache=cache,
        )
        self.samples = samples
        self.batch_size = batch_size
        self.validation_samples = validation_samples

    def vocabulary(self) -> tuple[dict[str, set[str]], set[str]]:
        """Every label of each attribute in the training clips, and all that is said in them."""
        labels: dict[str, set[str]] = {}
        texts: set[str] = set()
        for clip, split, cut in zip(self.library.clips, self.library.splits, self.library.cut, strict=True):
            if split == "train":
                for name, label in labels_of(clip).items():
                    labels.setdefault(name, set()).add(label)
                texts.add("" if cut else spoken_text(clip))
        return labels, texts - {""}

    def train_dataloader(self) -> ResumableDataLoader:
        """Windows of the training clips."""
        return self._loader("train", self.samples, _SHARES)

    def val_dataloader(self) -> ResumableDataLoader:
        """Windows of clips held out, at their own speed."""
        return self._loader("validation", self.validation_samples, {draw_window: 1.0})

    def _loader(self, split: str, size: int, shares: dict[Draw, float]) -> ResumableDataLoader:
        windows = _Drawn(Pools.of(self.library, split), self.processor, size, self.seed, shares)
        sampler = LengthBucketSampler([1] * size, self.batch_size, shuffle=False, step=1)
        return ResumableDataLoader(windows, batch_sampler=sampler, collate_fn=_collate)
