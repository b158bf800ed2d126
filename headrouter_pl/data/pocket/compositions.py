"""Training audio put together from parts of encoded windows: any recordings, in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.pocket.questions import LANGUAGES, heard, is_named, role_of
from headrouter_pl.data.pocket.scenes import Scene, join
from headrouter_pl.data.pocket.windows import (
    FRAMES_PER_SECOND,
    WINDOW_SECONDS,
    EncodedWindows,
    draw_sparse_window,
)

__all__ = ["Part", "WindowPool"]

Part = tuple[int, int, int]
"""A window's number and its first and last frame, end exclusive."""

_SOUNDS = ("sound", "instrument")
_EDGE = (0.04, 0.3)  # seconds of its window to keep before and after a recording
_PAUSE = (5, 50)  # frames without a recording
_SPEECH = {"role": 0.6, "language": 0.22, "named": 0.18}  # what the other voices are drawn by
# By role, how often: mostly what can be asked about.
_ROLES = {
    "number": 0.12,
    "letter": 0.08,
    "word": 0.08,
    "phrase": 0.16,
    "item": 0.20,
    "room": 0.10,
    "prompt": 0.18,
}
_SAME_VOICE = 0.2  # of the voices that follow another are the same person's


class WindowPool(Sequence[np.ndarray]):
    """Windows of several kinds as one sequence.

    Args:
        kinds: The windows, one entry a kind; all of one split.
    """

    def __init__(self, kinds: Sequence[EncodedWindows]) -> None:
        self.places = [(kind, i) for kind in kinds for i in range(len(kind))]
        self.scenes = [scene for kind in kinds for scene in kind.scenes]
        self.sparse = [number for number, (kind, _) in enumerate(self.places) if kind.draw is draw_sparse_window]
        self.pools = kinds[0].pools
        self.library = self.pools.library

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        kind, place = self.places[index]
        return kind[place]

    def scene(self, parts: Sequence[Part]) -> Scene:
        """What is heard in parts that follow each other."""
        rate = FRAMES_PER_SECOND
        return join([self.scenes[window].part(first / rate, last / rate) for window, first, last in parts])

    def whole(self, rng: np.random.Generator, most: int) -> list[Part]:
        """One to ``most`` whole windows, half of the time sparse ones alone, whichever there are more of."""
        count = int(rng.integers(1, most + 1))
        sparse = len(self.sparse) >= count and rng.random() < 0.5
        chosen = rng.choice(self.sparse if sparse else len(self), count, replace=False).tolist()
        return [(window, 0, round(WINDOW_SECONDS * FRAMES_PER_SECOND)) for window in chosen]

    def spread(
        self, rng: np.random.Generator, count: int, seconds: float, heard: float = 1.0
    ) -> tuple[list[Part], list[int]]:
        """So many recordings at random places in so much quiet speech and noise, as long audio is.

        Args:
            rng: Source of all choices.
            count: Recordings, as :meth:`composed` draws them.
            seconds: Of the whole; a little more where the recordings do not fit.
            heard: Share of the quiet to put there. Of each stretch between two recordings the middle is left out, and
                what follows stands at the frame where it would stand: training sees the positions of long audio in a
                fraction of its tokens.

        Returns:
            The parts, and the frame at which each begins.

        Raises:
            ValueError: If no window has a stretch without a recording.
        """
        if not self._pauses:
            raise ValueError("There are no sparse windows, which hold the quiet stretches of long audio.")
        recordings = self.composed(rng, count, 0.0)
        quiet = max(0, round(seconds * FRAMES_PER_SECOND) - sum(last - first for _, first, last in recordings))
        # Each recording within its own share of the time, as in the benchmark's scenes.
        before = np.sort((np.arange(count) + rng.random(count)) / count * quiet).astype(int)
        gaps = np.diff([0, *before, quiet]).tolist()
        parts: list[Part] = []
        places: list[int] = []
        at = 0
        for gap, recording in zip(gaps, [*recordings, None], strict=True):
            early = int(rng.integers(round(gap * heard) + 1))
            late = round(gap * heard) - early
            pieces = [(at, self._quiet(rng, early)), (at + gap - late, self._quiet(rng, late))]
            at += gap
            if recording is not None:
                pieces.append((at, [recording]))
                at += recording[2] - recording[1]
            for place, piece in pieces:
                for part in piece:
                    parts.append(part)
                    places.append(place)
                    place += part[2] - part[1]
        return parts, places

    def _quiet(self, rng: np.random.Generator, frames: int) -> list[Part]:
        """So many frames without a recording, of several windows if need be."""
        parts = []
        while frames > 0:
            window, first, last = self._pauses[int(rng.integers(len(self._pauses)))]
            parts.append((window, first, min(last, first + frames)))
            frames -= last - first
        return parts

    def composed(self, rng: np.random.Generator, count: int, pauses: float) -> list[Part]:
        """So many recordings of any windows, at most one of them a sound.

        Args:
            rng: Source of all choices.
            count: Recordings.
            pauses: Share of them before which up to two seconds without a recording are heard.
        """
        sounds = [role for role in _SOUNDS if role in self._by["role"]]
        sound = int(rng.integers(count)) if sounds and rng.random() < (0.3 if count == 1 else 0.6) else -1
        parts: list[Part] = []
        voices: list[str] = []
        for number in range(count):
            if number == sound:
                pool = self._by["role"][str(rng.choice(sounds))]
            elif voices and rng.random() < _SAME_VOICE:
                pool = self._by["voice"][str(rng.choice(voices))]
            else:
                pool = self._speech(rng)
            window, event = pool[int(rng.integers(len(pool)))]
            voice = self._clip(window, event).voice
            voices += [voice] if voice else []
            if parts and self._pauses and rng.random() < pauses:
                quiet, first, last = self._pauses[int(rng.integers(len(self._pauses)))]
                parts.append((quiet, first, min(last, first + int(rng.integers(*_PAUSE)))))
            parts.append((window, *self._around(rng, window, event)))
        return parts

    def _speech(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Recordings of one role, one language or one named voice; each of the latter two as often as the others."""
        by = [name for name in _SPEECH if self._by[name]]
        shares = np.array([_SPEECH[name] for name in by])
        name = str(rng.choice(by, p=shares / shares.sum()))
        values = [value for value in self._by[name] if value not in _SOUNDS]
        weights = np.array([_ROLES[value] if name == "role" else 1.0 for value in values])
        return self._by[name][str(rng.choice(values, p=weights / weights.sum()))]

    def _clip(self, window: int, event: int) -> Clip:
        return heard(self.library, self.scenes[window].events[event])

    def _around(self, rng: np.random.Generator, window: int, event: int) -> tuple[int, int]:
        """Frames of a recording with a little before and after, but nothing of its neighbours."""
        events = self.scenes[window].events
        before = events[event - 1].end if event else 0.0
        after = events[event + 1].start if event + 1 < len(events) else WINDOW_SECONDS
        start = max(before, events[event].start - float(rng.uniform(*_EDGE)))
        end = min(after, events[event].end + float(rng.uniform(*_EDGE)))
        return int(start * FRAMES_PER_SECOND), int(np.ceil(end * FRAMES_PER_SECOND))

    def _heard(self) -> Iterator[tuple[tuple[int, int], Clip]]:
        """Every recording of the windows, by window and event."""
        for window, scene in enumerate(self.scenes):
            for event in range(len(scene.events)):
                yield (window, event), self._clip(window, event)

    @cached_property
    def _by(self) -> dict[str, dict[str, list[tuple[int, int]]]]:
        """Where recordings of each role, voice, named voice and language are, by window and event."""
        found: dict[str, dict[str, list[tuple[int, int]]]] = {
            name: {} for name in ("role", "voice", "named", "language")
        }
        for place, clip in self._heard():
            labels = {"role": role_of(clip), "voice": clip.voice}
            if clip.kind == "speech" and not clip.code:
                labels["named"] = clip.voice if is_named(clip.voice) else ""
                labels["language"] = clip.language if clip.language in LANGUAGES else ""
            for name, value in labels.items():
                if value:
                    found[name].setdefault(value, []).append(place)
        return {name: dict(sorted(places.items())) for name, places in found.items()}

    @cached_property
    def _pauses(self) -> list[Part]:
        """Where a sparse window has a second or more without a recording."""
        found = []
        for window in self.sparse:
            events = self.scenes[window].events
            ends = [0.0, *(event.end for event in events)]
            starts = [*(event.start for event in events), WINDOW_SECONDS]
            for end, start in zip(ends, starts, strict=True):
                if start - end >= 1:
                    found.append((window, int(np.ceil(end * FRAMES_PER_SECOND)), int(start * FRAMES_PER_SECOND)))
        return found
