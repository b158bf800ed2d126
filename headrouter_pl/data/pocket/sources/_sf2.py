"""Reads SoundFont 2 files: which sample sounds for a key of a program, and how it is looped and faded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from headrouter_pl.data.audio import AudioError

__all__ = ["SoundFont", "Zone", "open_soundfont"]

# Generators by their number in the SoundFont 2.04 specification, section 8.1.2.
_START, _END, _LOOP_START, _LOOP_END = 0, 1, 2, 3
_COARSE = {4: _START, 12: _END, 45: _LOOP_START, 50: _LOOP_END}
_ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE = 34, 35, 36, 37, 38
_INSTRUMENT, _KEYS, _VELOCITIES, _ATTENUATION = 41, 43, 44, 48
_COARSE_TUNE, _FINE_TUNE, _SAMPLE, _MODES, _SCALE, _ROOT = 51, 52, 53, 54, 56, 58
_SIGNED = {_START, _END, _LOOP_START, _LOOP_END, *_COARSE, _ATTACK, _HOLD, _DECAY, _RELEASE, _COARSE_TUNE, _FINE_TUNE}
_ADDED = {_ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE, _ATTENUATION, _COARSE_TUNE, _FINE_TUNE}
_VELOCITY = 96

Generators = dict[int, int]


@dataclass(frozen=True)
class Zone:
    """One sample as one key plays it.

    Attributes:
        start: First sample point.
        end: Behind the last.
        loop: First point of the loop and the one behind it; ``None``: played once.
        rate: Sample points a second at that key.
        gain: Factor.
        attack: Seconds.
        hold: Seconds at the peak.
        decay: Seconds for a fall of 100 dB.
        sustain: Level that the decay ends on, in dB below the peak.
        release: Seconds for a fall of 100 dB after the key is let go.
    """

    start: int
    end: int
    loop: tuple[int, int] | None
    rate: float
    gain: float
    attack: float
    hold: float
    decay: float
    sustain: float
    release: float


def _chunks(data: memoryview, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    found = {}
    while start + 8 <= end:
        name, size = bytes(data[start : start + 4]), int.from_bytes(data[start + 4 : start + 8], "little")
        if name == b"LIST":
            name = bytes(data[start + 8 : start + 12])
            found[name] = (start + 12, start + 8 + size)
        else:
            found[name] = (start + 8, start + 8 + size)
        start += 8 + size + (size & 1)
    return found


def _seconds(timecents: int) -> float:
    return float(2.0 ** (min(max(timecents, -12000), 8000) / 1200))


class SoundFont:
    """An open soundfont; its samples stay on the disk until they are played.

    Args:
        path: ``.sf2`` file with 16-bit samples.

    Raises:
        AudioError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise AudioError(f"no soundfont at {path}")
        self.path = path
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        data = memoryview(mapped)  # type: ignore[arg-type]
        if bytes(data[:4]) != b"RIFF" or bytes(data[8:12]) != b"sfbk":
            raise AudioError(f"{path} is not a SoundFont 2 file")
        try:
            top = _chunks(data, 12, len(data))
            begin, end = _chunks(data, *top[b"sdta"])[b"smpl"]
            tables = {name: bytes(data[a:b]) for name, (a, b) in _chunks(data, *top[b"pdta"]).items()}
            self._points = np.frombuffer(mapped, dtype="<i2", count=(end - begin) // 2, offset=begin)
            self._presets = list(struct.iter_unpack("<20sHHH12x", tables[b"phdr"]))
            self._instruments = list(struct.iter_unpack("<20sH", tables[b"inst"]))
            self._samples = list(struct.iter_unpack("<20sIIIIIBbHH", tables[b"shdr"]))
            self._bags = {name: list(struct.iter_unpack("<HH", tables[name])) for name in (b"pbag", b"ibag")}
            self._generators = {name: list(struct.iter_unpack("<HH", tables[name])) for name in (b"pgen", b"igen")}
        except (KeyError, struct.error) as error:
            raise AudioError(f"{path} is a broken SoundFont 2 file: {error!r}") from error

    def _zones(self, letter: bytes, first: int, last: int, target: int, key: int) -> list[Generators]:
        """Generators of the zones for `key` of one preset or instrument, each over those of its global zone."""
        bags, generators = self._bags[letter + b"bag"], self._generators[letter + b"gen"]
        common: Generators = {}
        zones = []
        for bag in range(first, last):
            own: Generators = {}
            for number, amount in generators[bags[bag][0] : bags[bag + 1][0]]:
                own[number] = amount - 65536 if number in _SIGNED and amount > 32767 else amount
            if target not in own:
                if bag == first:
                    common = own
                continue
            merged = common | own
            low, high = merged.get(_KEYS, 127 << 8) & 255, merged.get(_KEYS, 127 << 8) >> 8
            soft, loud = merged.get(_VELOCITIES, 127 << 8) & 255, merged.get(_VELOCITIES, 127 << 8) >> 8
            if low <= key <= high and soft <= _VELOCITY <= loud:
                zones.append(merged)
        return zones

    def zones(self, program: int, key: int, bank: int = 0) -> tuple[Zone, ...]:
        """What sounds when `key` of `program` is struck."""
        numbers = [preset[1:3] for preset in self._presets[:-1]]  # the last one only ends the table
        if (program, bank) not in numbers:
            raise AudioError(f"{self.path} has no program {program} in bank {bank}")
        at = numbers.index((program, bank))
        found = []
        for preset in self._zones(b"p", self._presets[at][3], self._presets[at + 1][3], _INSTRUMENT, key):
            which = preset[_INSTRUMENT]
            begin, end = self._instruments[which][1], self._instruments[which + 1][1]
            for zone in self._zones(b"i", begin, end, _SAMPLE, key):
                added = {g: zone.get(g, self._default(g)) + preset[g] for g in _ADDED & set(preset)}
                found.append(self._zone(zone | added, key))
        return tuple(found)

    @staticmethod
    def _default(generator: int) -> int:
        return -12000 if generator in {_ATTACK, _HOLD, _DECAY, _RELEASE} else 0

    def _zone(self, generators: Generators, key: int) -> Zone:
        _, start, end, loop_start, loop_end, rate, original, correction, _, _ = self._samples[generators[_SAMPLE]]
        offsets = {g: generators.get(g, 0) for g in (_START, _END, _LOOP_START, _LOOP_END)}
        for coarse, fine in _COARSE.items():
            offsets[fine] += 32768 * generators.get(coarse, 0)
        root = generators.get(_ROOT, 65535)
        root = root if root <= 127 else original if original <= 127 else 60
        cents = (key - root) * generators.get(_SCALE, 100) + correction
        cents += 100 * generators.get(_COARSE_TUNE, 0) + generators.get(_FINE_TUNE, 0)
        loop = (loop_start + offsets[_LOOP_START], loop_end + offsets[_LOOP_END])
        looped = generators.get(_MODES, 0) & 1 and loop[1] - loop[0] > 1
        times = {g: _seconds(generators.get(g, -12000)) for g in (_ATTACK, _HOLD, _DECAY, _RELEASE)}
        return Zone(
            start=start + offsets[_START],
            end=end + offsets[_END],
            loop=loop if looped else None,
            rate=rate * 2 ** (cents / 1200),
            # 0.4 of the attenuation in cB, as the hardware did and as players still do.
            gain=10 ** (-0.4 * generators.get(_ATTENUATION, 0) / 200),
            attack=times[_ATTACK],
            hold=times[_HOLD],
            decay=times[_DECAY],
            sustain=min(generators.get(_SUSTAIN, 0), 1000) / 10,
            release=times[_RELEASE],
        )

    def play(self, program: int, key: int, seconds: float, rate: int, tail: float = 0.3) -> np.ndarray:
        """One note -> float32 ``[samples]``, mono.

        Args:
            program: General MIDI program from 0.
            key: MIDI key, 60 is the middle C.
            seconds: How long the key is held.
            rate: Hz of the result.
            tail: Longest time that the note sounds on, in seconds.

        Raises:
            AudioError: the soundfont has nothing for that key.
        """
        import soxr

        length = int((seconds + tail) * rate)
        note = np.zeros(length, dtype=np.float32)
        zones = self.zones(program, key)
        if not zones:
            raise AudioError(f"{self.path} has no sample for key {key} of program {program}")
        for zone in zones:
            wanted = int((seconds + tail) * zone.rate) + 8
            at = zone.start + np.arange(wanted)
            if zone.loop is None:
                at = at[at < zone.end]
            else:
                first, behind = zone.loop
                at = np.where(at < behind, at, first + (at - first) % (behind - first))
            points = self._points[np.clip(at, 0, len(self._points) - 1)].astype(np.float32) / 32768
            points *= zone.gain * _envelope(zone, len(points), seconds)
            played = soxr.resample(points, zone.rate, rate)[:length]
            note[: len(played)] += played
        fade = max(int(0.02 * rate), 1)
        note[-fade:] *= np.linspace(1, 0, len(note[-fade:]), dtype=np.float32)
        return note


def _envelope(zone: Zone, length: int, seconds: float) -> np.ndarray:
    """Volume of a note over its sample points: attack, hold, decay to the sustain level, release."""
    time = np.arange(length, dtype=np.float32) / np.float32(zone.rate)
    level = np.minimum(time / max(zone.attack, 1e-3), 1)  # linear; all the rest is linear in dB
    fall = np.clip((time - zone.attack - zone.hold) / max(zone.decay, 1e-3) * 100, 0, zone.sustain)
    fall += np.clip((time - seconds) / max(zone.release, 1e-2) * 100, 0, None)
    return np.asarray(level * 10 ** (-fall / 20), dtype=np.float32)


@lru_cache(maxsize=4)
def open_soundfont(path: Path) -> SoundFont:
    """The soundfont `path`, opened once a process."""
    return SoundFont(path)
