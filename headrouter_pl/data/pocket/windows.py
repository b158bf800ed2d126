"""Training audio: windows of 30 s full of clips, encoded once, cut and joined anew in every epoch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from headrouter_pl.data.pocket.pools import Pools
from headrouter_pl.data.pocket.scenes import Scene, lay_out, render
from headrouter_pl.wheels import cache_root

__all__ = ["FRAMES_PER_SECOND", "WINDOW_SECONDS", "EncodedWindows", "draw_window"]

WINDOW_SECONDS = 30.0
"""What the encoder of the pocket model hears at once."""

FRAMES_PER_SECOND = 25
"""Audio tokens a second."""

ROLE_WEIGHTS: Mapping[str, float] = {
    "number": 0.10,
    "letter": 0.07,
    "word": 0.07,
    "phrase": 0.12,
    "item": 0.14,
    "room": 0.07,
    "prompt": 0.14,
    "sentence": 0.10,
    "sound": 0.10,
    "instrument": 0.09,
}
"""How often each role is heard in training windows."""

_SHARD = 25  # windows in one file: a stop loses less than ten seconds of encoding
_RECIPE = 1


def draw_window(
    rng: np.random.Generator,
    pools: Pools,
    weights: Mapping[str, float] = ROLE_WEIGHTS,
    max_speed: float = 1.0,
) -> Scene:
    """A window of 30 s, clips one closely after another."""
    names = [name for name in weights if name in pools.roles]
    shares = np.array([weights[name] for name in names])
    clips, filled = [], 0.6
    while True:
        if clips and rng.random() < 0.15:  # the same voice again, so that "the same person" is asked with both answers
            voice = pools.library.clips[clips[-1]].voice
            again = [name for name in ("prompt", "phrase", "item", "number") if name in pools.roles]
            clip = pools.draw(rng, str(rng.choice(again)), where=lambda other: voice != "" and other.voice == voice)
        else:
            clip = pools.draw(rng, str(rng.choice(names, p=shares / shares.sum())))
        if clip is None:
            continue
        filled += pools.library.seconds(clip) * max_speed + 0.7
        if filled > WINDOW_SECONDS:
            break
        clips.append(clip)
    scene = lay_out(rng, pools.library, clips, None, backgrounds=pools.backgrounds, max_speed=max_speed)
    return replace(scene, seconds=WINDOW_SECONDS)


def draw_varied_window(rng: np.random.Generator, pools: Pools) -> Scene:
    """Like :func:`draw_window`, with clips up to a fifth faster or slower: voices that were never recorded."""
    return draw_window(rng, pools, max_speed=1.2)


def draw_sparse_window(rng: np.random.Generator, pools: Pools, weights: Mapping[str, float] = ROLE_WEIGHTS) -> Scene:
    """A window of 30 s with two to six clips, far apart, and quiet speech between, as long audio is."""
    names = [name for name in weights if name in pools.roles]
    shares = np.array([weights[name] for name in names])
    count = int(rng.integers(2, 7))
    clips: list[int] = []
    while len(clips) < count:
        clip = pools.draw(rng, str(rng.choice(names, p=shares / shares.sum())), 0.9 * WINDOW_SECONDS / count)
        clips += [] if clip is None else [clip]
    return lay_out(rng, pools.library, clips, WINDOW_SECONDS, murmurs=pools.murmurs, backgrounds=pools.backgrounds)


class EncodedWindows(Sequence[np.ndarray]):
    """Windows and what the encoder makes of them.

    Args:
        pools: Clips to draw from.
        count: Number of windows.
        seed: Seed of the first; window ``i`` does not depend on ``count``.
        cache: :func:`headrouter_pl.wheels.cache_root` if None.
        draw: Draws a window: :func:`draw_window` or :func:`draw_sparse_window`.
    """

    def __init__(
        self,
        pools: Pools,
        count: int,
        seed: int = 0,
        cache: Path | None = None,
        draw: Callable[[np.random.Generator, Pools], Scene] = draw_window,
    ) -> None:
        self.pools = pools
        self.count = count
        self.seed = seed
        self.draw = draw
        recipe: list[Any] = [_RECIPE, pools.library.name, sorted(pools.roles), dict(ROLE_WEIGHTS), seed]
        recipe += [] if draw is draw_window else [draw.__name__]
        name = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
        self.folder = (cache_root() if cache is None else Path(cache)) / "pocket-windows" / name

    def __len__(self) -> int:
        return self.count

    @cached_property
    def scenes(self) -> list[Scene]:
        """The recipe of each window."""
        return [self.draw(np.random.default_rng([self.seed, i]), self.pools) for i in range(self.count)]

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        """float16 ``[750, 512]``: the encoder's output for one window."""
        return self._shard(index // _SHARD)[index % _SHARD]

    def _shard(self, number: int) -> np.ndarray:
        return np.load(self._path(number), mmap_mode="r")

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05}.npy"

    def missing(self) -> list[int]:
        """Numbers of the files that are not cached yet."""
        return [n for n in range(-(-self.count // _SHARD)) if not self._path(n).is_file()]

    def encode(self, model: Any, processor: Any, *, progress: bool = True) -> None:
        """Encodes what is not cached yet; a file appears only once it is whole.

        Args:
            model: The pocket model.
            processor: Its processor.
            progress: Show a progress bar.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = self.missing()
        tower, extract = model.model.audio_tower, processor.feature_extractor
        for number in tqdm(missing, desc="windows", unit=f"{_SHARD} windows", disable=not progress):
            rows = []
            for i in range(number * _SHARD, (number + 1) * _SHARD):
                scene = self.draw(np.random.default_rng([self.seed, i]), self.pools)
                audio = render(scene, self.pools.library)
                mel = extract(audio, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
                with torch.inference_mode():
                    features = mel["input_features"].to(tower.device, tower.dtype)
                    mask = mel["attention_mask"].to(tower.device)
                    rows.append(tower(features, input_features_mask=mask).last_hidden_state[0].half().cpu().numpy())
            scratch = self._path(number).with_suffix(f".{os.getpid()}.tmp")
            with open(scratch, "wb") as out:
                np.save(out, np.stack(rows), allow_pickle=False)
            os.replace(scratch, self._path(number))
