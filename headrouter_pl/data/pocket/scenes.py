"""Scenes: recordings laid one after another over a background, with where each one stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from headrouter_pl.data.pocket.clips import SAMPLING_RATE
from headrouter_pl.data.pocket.library import ClipLibrary

__all__ = ["Event", "Scene", "lay_out", "render"]


@dataclass(frozen=True, slots=True)
class Event:
    """One recording in a scene.

    Attributes:
        clip: Index in the library.
        start: Seconds from the beginning of the scene.
        end: The same.
        level: dB relative to the clip's own (evened out) level.
        speed: Factor by which the clip is played faster, and higher; what is said stays, the voice becomes another.
    """

    clip: int
    start: float
    end: float
    level: float = 0.0
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Scene:
    """An audio, as a recipe.

    Attributes:
        seconds: Length.
        events: What questions are about, in time order; they never overlap each other.
        murmurs: Quiet speech that no question is about; overlaps anything.
        background: Clip repeated under everything, or None for noise.
        background_level: dB relative to the events; ``-inf`` for none.
        tilt: Exponent of the noise's spectrum: 0 white, 1 pink, 2 brown.
        echo: Reverberation time in seconds; 0 for none.
        seed: Of noise and echo.
    """

    seconds: float
    events: tuple[Event, ...]
    murmurs: tuple[Event, ...] = ()
    background: int | None = None
    background_level: float = float("-inf")
    tilt: float = 1.0
    echo: float = 0.0
    seed: int = 0

    def part(self, start: float, end: float) -> Scene:
        """What is between two times: the events that lie within, their times counted from ``start``.

        Only for asking questions: the part is not rendered again.
        """
        inside = (event for event in self.events if event.start >= start and event.end <= end)
        events = tuple(replace(event, start=event.start - start, end=event.end - start) for event in inside)
        return replace(self, seconds=end - start, events=events, murmurs=())

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def join(scenes: Sequence[Scene]) -> Scene:
    """Several scenes one after another, for asking questions about all of it."""
    events, offset = [], 0.0
    for scene in scenes:
        events += [replace(event, start=event.start + offset, end=event.end + offset) for event in scene.events]
        offset += scene.seconds
    return replace(scenes[0], seconds=offset, events=tuple(events), murmurs=())


def lay_out(
    rng: np.random.Generator,
    library: ClipLibrary,
    clips: Sequence[int],
    seconds: float | None,
    *,
    murmurs: Sequence[int] = (),
    backgrounds: Sequence[int] = (),
    max_speed: float = 1.0,
) -> Scene:
    """Places clips in the given order.

    Args:
        rng: Source of all choices.
        library: Where the clips are.
        clips: Indices of the clips.
        seconds: Length of the scene: each clip stands at a random place within its own share of it, which is as much
            longer than the clip as the others', so that positions are stratified. None packs the clips closely, 0.1
            to 0.7 s apart.
        murmurs: Clips to choose quiet speech from; for scenes of 30 s and more.
        backgrounds: Clips to choose a background from.
        max_speed: Clips are played up to so many times faster or slower.
    """
    events, now = [], float(rng.uniform(0.1, 0.6))
    whole = sum(library.seconds(clip) for clip in clips)
    if seconds is not None and max_speed > 1:
        raise ValueError("clips of another speed can only be packed closely: give seconds or max_speed, not both")
    if seconds is not None and whole > seconds:
        raise ValueError(f"{len(clips)} clips of {whole:.2f} s do not fit in {seconds:.2f} s")
    share = 0.0
    for clip in clips:
        speed = float(np.exp(rng.uniform(-1, 1) * np.log(max_speed))) if max_speed > 1 else 1.0
        length = library.seconds(clip) / speed
        if seconds is not None:
            room = (seconds - whole) / len(clips)
            now = share + float(rng.uniform(0, room))
            share += length + room
        events.append(Event(clip, now, now + length, float(rng.uniform(-5, 3)), speed))
        now += length + float(rng.uniform(0.1, 0.7))
    seconds = now if seconds is None else seconds
    quiet = []
    if len(murmurs) and seconds >= 30:
        for _ in range(rng.poisson(seconds / 15)):
            clip = int(rng.choice(murmurs))
            start = float(rng.uniform(0, seconds - library.seconds(clip)))
            quiet.append(Event(clip, start, start + library.seconds(clip), float(rng.uniform(-28, -20))))
    kind = rng.random()
    return Scene(
        seconds,
        tuple(events),
        tuple(quiet),
        background=int(rng.choice(backgrounds)) if len(backgrounds) and kind < 0.4 else None,
        background_level=float(rng.uniform(-32, -12)) if kind < 0.85 else -60.0,
        tilt=float(rng.uniform(0, 2)),
        echo=float(rng.uniform(0.1, 0.6)) if rng.random() < 0.3 else 0.0,
        seed=int(rng.integers(2**31)),
    )


def render(scene: Scene, library: ClipLibrary) -> np.ndarray:
    """The audio of a scene.

    Returns:
        float32 ``[round(seconds * 16000)]``, peak at most 0.95.
    """
    from scipy.signal import fftconvolve, resample

    rng = np.random.default_rng(scene.seed)
    mix: np.ndarray = np.zeros(round(scene.seconds * SAMPLING_RATE), np.float32)
    for event in (*scene.events, *scene.murmurs):
        samples = library.audio(event.clip) * 10 ** (event.level / 20)
        if event.speed != 1.0:
            samples = resample(samples, max(1, round(len(samples) / event.speed))).astype(np.float32)
        start = round(event.start * SAMPLING_RATE)
        samples = samples[: len(mix) - start]
        mix[start : start + len(samples)] += samples
    if scene.echo:
        tail = int(scene.echo * SAMPLING_RATE)
        decay = 10 ** (-3 * np.arange(tail) / tail)  # 60 dB over the reverberation time
        response = rng.standard_normal(tail) * decay * 0.03
        response[0] = 1.0
        mix = fftconvolve(mix, response.astype(np.float32))[: len(mix)].astype(np.float32)
    if np.isfinite(scene.background_level):
        mix = mix + _background(scene, library, len(mix), rng) * 10 ** ((scene.background_level - 22) / 20)
    return (mix * min(1.0, 0.95 / max(float(np.abs(mix).max()), 1e-9))).astype(np.float32)


def _background(scene: Scene, library: ClipLibrary, samples: int, rng: np.random.Generator) -> np.ndarray:
    """float32 ``[samples]`` of root mean square 1, without anything above 4 kHz, as the clips are."""
    if scene.background is not None:
        sound = library.audio(scene.background)
        sound = np.resize(sound, samples)
    else:
        spectrum = np.fft.rfft(rng.standard_normal(samples))
        frequency = np.fft.rfftfreq(samples, 1 / SAMPLING_RATE)
        shape = np.maximum(frequency, 50.0) ** (-scene.tilt / 2) * (frequency < 4_000)
        sound = np.fft.irfft(spectrum * shape, samples)
    return (sound / max(float(np.sqrt(np.mean(sound**2))), 1e-9)).astype(np.float32)
