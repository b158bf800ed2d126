"""Sources whose clips are told by file names alone: a folder and a table of regular expressions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from headrouter_pl.data.audio import AudioBytes, AudioError, read_audio
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip, Source

__all__ = ["Rules", "check_peak", "classify", "family", "package_folder", "read_bytes", "read_file", "table_source"]

Rules = tuple[tuple[str, str], ...]
"""(regular expression, label) in order, the first hit decides. A label is a kind of sound (``"bird"``), an instrument
(``"instrument:flute"``), ``"background"``, or ``""`` to leave the file out."""

_AUDIO = frozenset({".wav", ".ogg", ".oga", ".flac", ".mp3", ".aif", ".aiff", ".au"})
_SILENT = 1e-3  # peak below -60 dBFS: the packages' placeholder files
_TAKE = re.compile(r"(?:[\W_]+miss|[\W_]*\d+[a-z]?)*[\W_]*$", re.IGNORECASE)


def classify(name: str, rules: Rules) -> tuple[str, str, str] | None:
    """Look a file name up in a table.

    Args:
        name: Path below the table's folder, without suffix; upper and lower case are the same.
        rules: The table.

    Returns:
        (kind, sound, instrument) as a :class:`Clip` has them, or ``None`` for a file to leave out.
    """
    for pattern, label in rules:
        if re.search(pattern, name, re.IGNORECASE):
            if not label:
                return None
            if label == "background":
                return "background", "", ""
            head, _, instrument = label.partition(":")
            return ("sound", "", instrument) if head == "instrument" else ("sound", label, "")
    return None


def family(name: str) -> str:
    """The name without its take: ``"sword-miss-2"`` -> ``"sword"``; a name that is all number stays."""
    return _TAKE.sub("", name) or name


def package_folder(root: Path, folder: str, package: str) -> Path:
    """The folder `folder` below ``usr/share`` of `root`.

    Raises:
        AudioError: it is missing; the message names `package`.
    """
    path = root / "usr/share" / folder
    if not path.exists():
        raise AudioError(f"no {path}: install the Debian package {package} (apt-get install {package})")
    return path


def check_peak(samples: np.ndarray, key: str) -> np.ndarray:
    """Return `samples`; raise :class:`AudioError` when their peak is that of a placeholder file."""
    if samples.size == 0 or float(np.abs(samples).max()) < _SILENT:
        raise AudioError(f"{key} is silent")
    return samples


def read_file(root: Path, clip: Clip) -> np.ndarray:
    """Read a clip that is a file of its own; :class:`AudioError` when it is unreadable or silent."""
    return check_peak(read_audio(root / clip.key, SAMPLING_RATE), clip.key)


def read_bytes(data: bytes, key: str) -> np.ndarray:
    """Decode the audio file `data`, as :func:`read_file` does."""
    return check_peak(read_audio(AudioBytes(data, key), SAMPLING_RATE), key)


def _table_clips(
    root: Path, name: str, package: str, folder: str, rules: Rules, licence: str, content: Callable[[str], str]
) -> Iterator[Clip]:
    base = package_folder(root, folder, package)
    files = {path.relative_to(base).as_posix(): path for path in base.rglob("*") if path.suffix.lower() in _AUDIO}
    copies: set[tuple[str, int]] = set()
    for relative, path in sorted(files.items()):
        label = classify(relative[: -len(path.suffix)], rules)
        # Games install one file in many folders, linked or copied: keep the first.
        if label is None or path.is_symlink() or (copy := (path.name.lower(), path.stat().st_size)) in copies:
            continue
        copies.add(copy)
        kind, sound, instrument = label
        yield Clip(
            key=path.relative_to(root).as_posix(),
            package=package,
            kind=kind,
            content=f"{name}:{content(relative[: -len(path.suffix)])}",
            sound=sound,
            instrument=instrument,
            licence=licence,
        )


def _file_family(relative: str) -> str:
    return family(relative.rpartition("/")[2].lower())


def table_source(
    name: str,
    folders: Iterable[tuple[str, str, str]],
    rules: Rules,
    licence: str,
    content: Callable[[str], str] = _file_family,
    licences: Mapping[str, str] | None = None,
) -> Source:
    """A source out of one table.

    Args:
        name: Short name; also what every ``content`` begins with.
        folders: (package, version, folder below ``usr/share``) each.
        rules: The table, looked up with the path below the folder, without suffix.
        licence: Of the clips.
        content: Path below the folder, without suffix -> object, kit or file family.
        licences: Package -> licence, where it is not `licence`.
    """
    places = tuple(folders)

    def index(root: Path) -> Iterator[Clip]:
        clips: dict[str, Clip] = {}
        for package, _, folder in places:
            terms = (licences or {}).get(package, licence)
            for clip in _table_clips(root, name, package, folder, rules, terms, content):
                clips.setdefault(clip.key, clip)
        yield from (clips[key] for key in sorted(clips))

    return Source(name, {package: version for package, version, _ in places}, index, read_file)
