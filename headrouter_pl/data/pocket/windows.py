"""Training audio: windows of 30 s full of clips, encoded once, cut and joined anew in every epoch."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.pools import Pools
from headrouter_pl.data.pocket.questions import heard, labels_of, spoken_text
from headrouter_pl.data.pocket.scenes import Scene, lay_out, render
from headrouter_pl.models.encoded import encode_audio
from headrouter_pl.results import replacing
from headrouter_pl.wheels import cache_root

__all__ = ["FRAMES_PER_SECOND", "WINDOW_SECONDS", "EncodedWindows", "draw_window", "heard_in"]

WINDOW_SECONDS = 30.0
"""What the encoder of the pocket model hears at once."""

FRAMES_PER_SECOND = 25
"""Audio tokens a second."""

ROLE_WEIGHTS: Mapping[str, float] = {
    "number": 0.07,
    "letter": 0.05,
    "word": 0.04,
    "phrase": 0.06,
    "item": 0.22,
    "room": 0.09,
    "prompt": 0.23,
    "sentence": 0.06,
    "sound": 0.10,
    "instrument": 0.08,
}
"""How often each role is heard in training windows: more of those that have more recordings, so that most are heard."""

_POWER = {"prompt": 0.5, "room": 1.0, "item": 1.0}
"""For `Pools.draw`: of these roles, what has hundreds of recordings is heard more than what has ten."""

_SHARD = 25  # windows in one file: a stop loses less than ten seconds of encoding
_RECIPE = 2  # encoded in float32


def draw_window(
    rng: np.random.Generator,
    pools: Pools,
    weights: Mapping[str, float] = ROLE_WEIGHTS,
    max_speed: float = 1.0,
) -> Scene:
    """A window of 30 s, clips one closely after another."""
    names = [name for name in weights if name in pools.roles]
    shares = np.array([weights[name] for name in names])
    clips: list[int] = []
    filled = 0.6
    while True:
        if clips and rng.random() < 0.15:  # the same voice again, so that "the same person" is asked with both answers
            again = [name for name in ("prompt", "phrase", "item", "number") if name in pools.roles]
            same = partial(_is_voice, pools.library.clips[clips[-1]].voice)
            clip = pools.draw(rng, str(rng.choice(again)), where=same)
        else:
            clip = _draw(rng, pools, str(rng.choice(names, p=shares / shares.sum())))
        if clip is None:
            continue
        filled += pools.library.seconds(clip) * max_speed + 0.7
        if filled > WINDOW_SECONDS:
            break
        clips.append(clip)
    scene = lay_out(rng, pools.library, clips, None, backgrounds=pools.backgrounds, max_speed=max_speed)
    return replace(scene, seconds=WINDOW_SECONDS)


def _draw(rng: np.random.Generator, pools: Pools, role: str, max_seconds: float = float("inf")) -> int | None:
    return pools.draw(rng, role, max_seconds, power=_POWER.get(role, 0.0))


def _is_voice(voice: str, clip: Clip) -> bool:
    return voice != "" and clip.voice == voice


def draw_varied_window(rng: np.random.Generator, pools: Pools) -> Scene:
    """Like :func:`draw_window`, with clips up to a fifth faster or slower: voices that were never recorded."""
    return draw_window(rng, pools, max_speed=1.2)


def draw_phrase_window(rng: np.random.Generator, pools: Pools) -> Scene:
    """Like :func:`draw_varied_window`, with phrases of synthetic voices alone."""
    return draw_window(rng, pools, {"spoken phrase": 1.0}, max_speed=1.25)


def draw_sentence_window(rng: np.random.Generator, pools: Pools) -> Scene:
    """Like :func:`draw_varied_window`, with whole sentences alone: what is said has to be written down."""
    return draw_window(rng, pools, {"sentence": 0.7, "prompt": 0.3}, max_speed=1.2)


def draw_sparse_window(rng: np.random.Generator, pools: Pools) -> Scene:
    """A window of 30 s with two to six clips, far apart, and quiet speech between, as long audio is."""
    names = [name for name in ROLE_WEIGHTS if name in pools.roles]
    shares = np.array([ROLE_WEIGHTS[name] for name in names])
    count = int(rng.integers(2, 7))
    clips: list[int] = []
    while len(clips) < count:
        clip = _draw(rng, pools, str(rng.choice(names, p=shares / shares.sum())), 0.9 * WINDOW_SECONDS / count)
        clips += [] if clip is None else [clip]
    return lay_out(rng, pools.library, clips, WINDOW_SECONDS, murmurs=pools.murmurs, backgrounds=pools.backgrounds)


def heard_in(scene: Scene, library: ClipLibrary) -> Iterator[tuple[int, int, str, dict[str, str]]]:
    """Of each recording in a window: its first and last frame (end exclusive), what is said, and its labels.

    The text is empty where it is not known, or not to be learned.
    """
    for event in scene.events:
        clip = heard(library, event)
        last = min(int(np.ceil(event.end * FRAMES_PER_SECOND)), round(WINDOW_SECONDS * FRAMES_PER_SECOND))
        text = "" if library.cut[event.clip] else spoken_text(clip)
        yield int(event.start * FRAMES_PER_SECOND), last, text, labels_of(clip)


class EncodedWindows(Sequence[np.ndarray]):
    """Windows and what the encoder makes of them.

    Encoded windows are cached under a hash of their recipes and clips: a change of what is drawn is encoded anew.

    Args:
        pools: Clips to draw from.
        size: Number of windows.
        seed: Seed of the first; window ``i`` does not depend on ``size``.
        cache: :func:`headrouter_pl.wheels.cache_root` if None.
        draw: Draws a window: :func:`draw_window` or another of this file.
        encoder: Digest of the encoder's adapter; empty for Whisper's encoder as it comes.
    """

    def __init__(
        self,
        pools: Pools,
        size: int,
        seed: int = 0,
        cache: Path | None = None,
        draw: Callable[[np.random.Generator, Pools], Scene] = draw_window,
        encoder: str = "",
    ) -> None:
        self.pools = pools
        self.size = size
        self.seed = seed
        self.draw = draw
        self.encoder = encoder
        self.folder = cache_root(cache) / "pocket-windows"

    def __len__(self) -> int:
        return self.size

    @cached_property
    def _drawn(self) -> list[Scene]:
        """The recipes, up to the end of the last file."""
        whole = -(-self.size // _SHARD) * _SHARD
        kind = zlib.crc32(self.draw.__name__.encode())  # each kind of window with recordings of its own
        return [self.draw(np.random.default_rng([self.seed, kind, i]), self.pools) for i in range(whole)]

    @property
    def scenes(self) -> list[Scene]:
        """The recipe of each window."""
        return self._drawn[: self.size]

    @cached_property
    def _paths(self) -> list[Path]:
        digests = self.pools.library.digests
        paths = []
        for first in range(0, len(self._drawn), _SHARD):
            scenes = self._drawn[first : first + _SHARD]
            heard = [
                [digests[event.clip] for event in (*scene.events, *scene.murmurs)]
                + ([] if scene.background is None else [digests[scene.background]])
                for scene in scenes
            ]
            of = [self.encoder] if self.encoder else []
            recipe = json.dumps([_RECIPE, [scene.to_dict() for scene in scenes], heard, *of])
            paths.append(self.folder / f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.npy")
        return paths

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        """float16 ``[750, 512]``: the encoder's output for one window."""
        if not -self.size <= index < self.size:
            raise IndexError(index)
        index %= self.size
        return np.load(self._paths[index // _SHARD], mmap_mode="r", allow_pickle=False)[index % _SHARD]

    def missing(self) -> list[int]:
        """Numbers of the files that are not cached yet, or not whole."""
        return [number for number, path in enumerate(self._paths) if not _is_whole(path)]

    def encode(self, model: Any, processor: Any, *, progress: bool = True) -> None:
        """Encodes what :meth:`missing` tells; a file appears only once it is whole.

        Args:
            model: The pocket model.
            processor: Its processor.
            progress: Show a progress bar.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = self.missing()
        for number in tqdm(missing, desc="windows", unit=f"{_SHARD} windows", disable=not progress):
            scenes = self._drawn[number * _SHARD : (number + 1) * _SHARD]
            rows = [encode_audio(model, processor, render(scene, self.pools.library)) for scene in scenes]
            with replacing(self._paths[number]) as scratch, open(scratch, "wb") as out:
                np.save(out, np.stack(rows), allow_pickle=False)


def _is_whole(path: Path) -> bool:
    """Whether a file of windows is there, and as long as its header says: a full disk may have left less."""
    if not path.is_file():
        return False
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):  # cut in its windows, or in its header
        return False
    return len(rows) == _SHARD and rows.offset + rows.nbytes == path.stat().st_size
