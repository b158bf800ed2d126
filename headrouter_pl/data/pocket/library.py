"""The clips of the installed packages, decoded, evened out and cached."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from headrouter_pl.data.audio import AudioError, read_audio
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip, Source
from headrouter_pl.data.pocket.copies import copies_across_splits
from headrouter_pl.data.pocket.sources import SOURCES
from headrouter_pl.data.pocket.splits import split_of
from headrouter_pl.wheels import cache_root

__all__ = ["ClipLibrary", "even_out", "install_command", "missing_packages"]

_MAX_SECONDS = 8.0
_MIN_SECONDS = 0.15
_RECIPE = 1  # raise it when decoding or evening out changes
_RECORD = "library.json"  # written last: a folder without it is not whole
_SAMPLES = "clips.i16"
_ABSENT = "not installed"


def packages(sources: Sequence[Source] = SOURCES) -> dict[str, str]:
    """Debian packages of the sources -> the version they were written for."""
    return {name: version for source in sources for name, version in source.packages.items()}


def install_command(names: Sequence[str] | None = None) -> list[str]:
    """The apt line that installs the packages.

    Example:
        >>> install_command(["gcin-voice"])
        ['apt-get', 'install', '--yes', '--no-install-recommends', 'gcin-voice']
    """
    return ["apt-get", "install", "--yes", "--no-install-recommends", *(packages() if names is None else names)]


def missing_packages(sources: Sequence[Source] = SOURCES) -> dict[str, str]:
    """What is wrong with the installed packages: name -> ``"not installed"`` or the version found."""
    wanted = packages(sources)
    try:
        query = ["dpkg-query", "--show", "--showformat=${Package}\t${db:Status-Status}\t${Version}\n", *wanted]
        listing = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError as error:
        raise AudioError("the Pocket benchmark is built from Debian packages, and dpkg-query is not here") from error
    rows = (line.split("\t") for line in listing.splitlines())
    found = {name: version for name, status, version in rows if status == "installed"}
    return {
        name: f"version {found[name]}, expected {version}" if name in found else _ABSENT
        for name, version in wanted.items()
        if found.get(name) != version
    }


def _advice(wrong: Mapping[str, str]) -> str:
    """What to do about the packages that :func:`missing_packages` found."""
    absent = [f"  {name}: {what}" for name, what in wrong.items() if what == _ABSENT]
    other = [f"  {name}: {what}" for name, what in wrong.items() if what != _ABSENT]
    lines: list[str] = []
    if absent:
        lines += ["packages of the Pocket benchmark are missing:", *absent]
        lines += ["Install them with `headrouter-pl data pocket --install`."]
    if other:
        lines += ["packages of the Pocket benchmark are there in another version:", *other]
        lines += [
            "The benchmark is written for the versions expected, those of Debian 12 (bookworm). Older ones are brought "
            "up to date there by `apt-get update` and the line that `headrouter-pl data pocket --install` prints; on "
            "another release of Debian it cannot be built."
        ]
    return "\n".join(lines)


def even_out(samples: np.ndarray) -> np.ndarray:
    """Makes a recording like the others in bandwidth, length and loudness.

    Band limited to 4 kHz (some sources are telephone recordings; bandwidth would tell them apart), trimmed where it is
    38 dB below its peak, cut at 8 s, the louder half brought to -22 dBFS, the peak to at most 0.95.

    Args:
        samples: float32 ``[n]`` at :data:`SAMPLING_RATE`.

    Returns:
        float32 ``[m]``.

    Raises:
        AudioError: If it is silent, or shorter than 0.15 s once trimmed.
    """
    import soxr

    samples = soxr.resample(soxr.resample(samples, SAMPLING_RATE, 8_000), 8_000, SAMPLING_RATE)
    frame = SAMPLING_RATE // 100
    whole = len(samples) // frame
    level = np.sqrt(np.mean(samples[: whole * frame].reshape(whole, frame) ** 2, axis=1)) if whole else np.zeros(1)
    if level.max() < 1e-4:
        raise AudioError("silent")
    loud = np.flatnonzero(level > level.max() * 10 ** (-38 / 20))
    samples = samples[loud[0] * frame : (loud[-1] + 1) * frame][: int(_MAX_SECONDS * SAMPLING_RATE)]
    if len(samples) < _MIN_SECONDS * SAMPLING_RATE:
        raise AudioError(f"{len(samples) / SAMPLING_RATE:.2f} s of sound, expected at least {_MIN_SECONDS} s")
    level = level[loud[0] : loud[0] + len(samples) // frame]
    louder = np.sqrt(np.mean(np.sort(level)[len(level) // 2 :] ** 2))
    samples = samples * (10 ** (-22 / 20) / louder)
    return (samples * min(1.0, 0.95 / np.abs(samples).max())).astype(np.float32)


def _decode(job: tuple[Callable[[Path, Clip], np.ndarray] | None, Path, Clip]) -> tuple[bytes, str, bool] | str:
    """Samples as int16, sha256 of the file, and whether it was cut; or why it cannot be used."""
    read, root, clip = job
    path = root / clip.key.split("!")[0]
    try:
        raw = read_audio(path, SAMPLING_RATE) if read is None else read(root, clip)
        samples = even_out(raw)
    except AudioError as error:
        return str(error)
    # Of an archive's member, or of what an engine says, the samples are hashed.
    whole = "!" not in clip.key and path.is_file()
    digest = hashlib.sha256(path.read_bytes() if whole else raw.tobytes()).hexdigest()
    cut = len(samples) >= int(_MAX_SECONDS * SAMPLING_RATE)
    return np.round(samples * 32767).astype("<i2").tobytes(), digest, cut


def _in_short(why: str) -> str:
    """Kind of a reason to leave a recording out, by its words, which are what caches hold."""
    if why.startswith("a copy of "):
        return "copied"
    if why.endswith("silent"):
        return "silent"
    # Some packages install files without a sample.
    return "too short" if " of sound, expected at least " in why or " is empty" in why else "not decoded"


def _map(files: Sequence[Path]) -> list[np.ndarray]:
    # An empty file cannot be mapped.
    return [np.memmap(file, dtype="<i2", mode="r") if file.stat().st_size else np.zeros(0, "<i2") for file in files]


@dataclass(frozen=True)
class ClipLibrary:
    """Decoded clips of the benchmark's packages.

    Attributes:
        clips: What is known of each.
        splits: Split of each: ``"train"``, ``"validation"`` or ``"test"``.
        spans: ``(file, first, last)`` of each: which cached file holds it, and its samples there.
        files: Cached samples, int16, one file for each source.
        cut: Whether each was longer than 8 s, so that its text is not all heard.
        digests: sha256 of each clip's file.
        dropped: Key -> why a clip cannot be used (silent, too short, does not decode, a copy of another).
        name: Hash of all that the library was made from.
    """

    clips: Sequence[Clip]
    splits: Sequence[str]
    spans: Sequence[tuple[int, int, int]]
    files: Sequence[Path]
    cut: Sequence[bool]
    digests: Sequence[str]
    dropped: Mapping[str, str]
    name: str

    @cached_property
    def _samples(self) -> list[np.ndarray]:
        return _map(self.files)

    def audio(self, index: int) -> np.ndarray:
        """Samples of one clip, float32 ``[n]`` at 16 kHz."""
        file, first, last = self.spans[index]
        return self._samples[file][first:last].astype(np.float32) / 32767

    def seconds(self, index: int) -> float:
        """Length of one clip."""
        _, first, last = self.spans[index]
        return (last - first) / SAMPLING_RATE

    def left_out(self) -> dict[str, list[str]]:
        """Why recordings are left out, in short (``"copied"``, ``"silent"``, ``"too short"``, ...) -> their keys."""
        found: dict[str, list[str]] = {}
        for key, why in self.dropped.items():
            found.setdefault(_in_short(why), []).append(key)
        return found

    @classmethod
    def open(
        cls,
        sources: Sequence[Source] = SOURCES,
        *,
        root: Path = Path("/"),
        cache: Path | None = None,
        sealed: bool = False,
        progress: bool = True,
    ) -> ClipLibrary:
        """The library; what is not cached is decoded (minutes, about 2 GB for all sources).

        Recordings that cannot be decoded are left out with a warning.

        Args:
            sources: Where clips come from.
            root: Where the packages are installed.
            cache: :func:`headrouter_pl.wheels.cache_root` if None.
            sealed: Open the sealed clips and no others; their split is ``"sealed"``.
            progress: Show progress bars.

        Raises:
            AudioError: If packages are missing, or of another version; it names all of them.
        """
        if wrong := missing_packages(sources):
            raise AudioError(_advice(wrong))
        base = cache_root(cache) / "pocket-clips"
        base.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        spans: list[tuple[int, int, int]] = []
        files: list[Path] = []
        names: list[str] = []
        dropped: dict[str, str] = {}
        first: dict[str, str] = {}  # sha256 -> key: some recordings are installed under several names
        for source in sources:
            chosen = [clip for clip in source.index(root) if (split_of(clip) == "sealed") == sealed]
            recipe = [_RECIPE, source.packages, sealed, [dataclasses.asdict(clip) for clip in chosen]]
            digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
            folder = base / f"{source.name}-{digest}"
            with FileLock(base / f"{folder.name}.lock"):
                if (record := _read_record(folder)) is None:
                    record = _build(source, root, chosen, folder, progress)
            start = 0
            dropped |= record["dropped"]
            for row in record["clips"]:
                span = len(files), start, start + row["samples"]
                start += row["samples"]
                if (known := first.setdefault(row["sha256"], row["key"])) != row["key"]:
                    dropped[row["key"]] = f"a copy of {known}"
                    continue
                spans.append(span)
                rows.append(row)
            files.append(folder / _SAMPLES)
            names.append(folder.name)
        fields = [field.name for field in dataclasses.fields(Clip)]
        clips = [Clip(**{name: row[name] for name in fields}) for row in rows]
        splits = [split_of(clip) for clip in clips]
        samples = _map(files)
        copies = copies_across_splits([samples[file][a:b] for file, a, b in spans], splits)
        dropped |= {clips[i].key: f"a copy of {clips[kept].key}, {splits[kept]}" for i, kept in copies.items()}
        stay = [i for i in range(len(clips)) if i not in copies]
        clips, splits = [clips[i] for i in stay], [splits[i] for i in stay]
        spans, rows = [spans[i] for i in stay], [rows[i] for i in stay]
        digests, cut = [row["sha256"] for row in rows], [row["cut"] for row in rows]
        name = hashlib.sha256(json.dumps([names, splits, digests]).encode()).hexdigest()[:12]
        return cls(clips, splits, spans, files, cut, digests, dropped, name)


def _read_record(folder: Path) -> dict[str, Any] | None:
    """What is cached of a source; None if that is not whole, with as many samples as its clips have."""
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        found = (folder / _SAMPLES).stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    return record if found == 2 * sum(row["samples"] for row in record["clips"]) else None


def _build(source: Source, root: Path, clips: Sequence[Clip], folder: Path, progress: bool) -> dict[str, Any]:
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    rows, dropped = [], {}
    try:
        with open(scratch / _SAMPLES, "wb") as out, ProcessPoolExecutor() as pool:
            results = pool.map(_decode, ((source.read, root, clip) for clip in clips), chunksize=16)
            bar = tqdm(clips, desc=source.name, unit="clip", disable=not progress)
            for clip, result in zip(bar, results, strict=True):
                if isinstance(result, str):
                    dropped[clip.key] = result
                    continue
                samples, digest, cut = result
                out.write(samples)
                rows.append(dataclasses.asdict(clip) | {"samples": len(samples) // 2, "sha256": digest, "cut": cut})
        record = {"clips": rows, "dropped": dropped}
        (scratch / _RECORD).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if failed := [clip for clip in clips if clip.key in dropped and _in_short(dropped[clip.key]) == "not decoded"]:
        first = failed[0]
        warnings.warn(
            f"{source.name}: {len(failed)} of {len(clips)} recordings cannot be decoded and are left out. The first is "
            f"{first.key} ({dropped[first.key]}). Install {first.package} anew, and remove {folder} to try again.",
            UserWarning,
            stacklevel=3,
        )
    return record
