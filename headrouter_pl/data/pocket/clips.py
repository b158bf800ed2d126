"""What a clip is: one short recording in an installed package, with what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["SAMPLING_RATE", "Clip", "Source"]

SAMPLING_RATE = 16_000
"""Hz, of all audio here."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording and its labels; a label that does not apply, or is not known, is empty.

    Attributes:
        key: Installed path from ``usr/share/`` on; for a member of an archive ``ARCHIVE!MEMBER``. Decides whether the
            clip is sealed, and names it in manifests.
        package: Debian package that installs it.
        kind: ``"speech"``, ``"sound"`` (an event or an instrument) or ``"background"`` (rooms, rain, crowds: laid under
            a whole scene, never asked about).
        content: What clips must share to be kept in one split: the prompt, phrase, object, sound object or kit. Empty
            for code words, which are split by voice alone.
        voice: Speaker, e.g. ``"asterisk/Allison"``, ``"hedgewars/Pirate"``; the same string for the same person.
        gender: ``"man"`` or ``"woman"``; empty where unknown or not human-like.
        language: English name, e.g. ``"Spanish"``.
        text: What is said, in its own language and spelling, without markup.
        english: The same in English: the transcript if it is English, else a translation; in lower case for words.
        code: Canonical code word, if the clip says exactly one: ``"7"``, ``"20"``, ``"B"``, ``"bravo"``.
        phrase: Identity of a phrase that several voices say, e.g. ``"hedgewars/Coward"``.
        item: English name of the object named, in lower case, e.g. ``"horse"``.
        category: Its category, e.g. ``"animal"``.
        room: Scene of a dialogue, e.g. ``"fillets/airplane"``.
        sound: Kind of sound, e.g. ``"bird"``, ``"drum"``.
        instrument: Musical instrument, e.g. ``"flute"``.
        licence: SPDX-like name of the licence as the package's copyright file states it.
    """

    key: str
    package: str
    kind: str
    content: str = ""
    voice: str = ""
    gender: str = ""
    language: str = ""
    text: str = ""
    english: str = ""
    code: str = ""
    phrase: str = ""
    item: str = ""
    category: str = ""
    room: str = ""
    sound: str = ""
    instrument: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Source:
    """Where clips come from.

    Attributes:
        name: Short name.
        packages: Debian packages it needs -> the version it was written for.
        index: Lists the clips under a root folder (``/`` on an installed system) by name alone: no audio is
            decoded. Sealed clips are listed too; who reads leaves them out.
        read: Decodes one clip -> float32 ``[samples]``, mono, at :data:`SAMPLING_RATE`, as recorded (not trimmed, not
            normalised). ``None``: the file is read by :func:`headrouter_pl.data.read_audio`.
    """

    name: str
    packages: dict[str, str]
    index: Callable[[Path], Iterator[Clip]]
    read: Callable[[Path, Clip], np.ndarray] | None = None
