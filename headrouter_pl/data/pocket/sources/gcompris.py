"""Instruments, animals and effects of the children's games GCompris, inside Qt resource archives (``.rcc``)."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._table import Rules, classify, family, package_folder, read_bytes

__all__ = ["SOURCE", "rcc_members", "rcc_read"]

_PACKAGE = "gcompris-qt-data"
_FOLDER = "gcompris-qt/rcc"
_LICENCE = "GPL-3.0-or-later"
_COMPRESSED, _DIRECTORY, _ZSTD = 1, 2, 4  # flags of a node

_INSTRUMENTS = "accordion banjo cello clarinet guitar harmonica harp organ piano saxophone trumpet tuba violin"
# Looked up with "ARCHIVE/FILE". Melodies of the world are music of many instruments: left out.
_RULES: Rules = (
    *((rf"^instruments/{name}$", f"instrument:{name}") for name in _INSTRUMENTS.split()),
    (r"^instruments/flute", "instrument:flute"),
    (r"^instruments/cymbal", "cymbal"),
    (r"^instruments/(bongo|drum_kit|snare_drum|timpani)", "drum"),
    (r"^melody/xylofon", "instrument:xylophone"),
    (r"^memory-sound/guitar", "instrument:guitar"),
    (r"^explore_farm_animals/(owl|chickens|duck)", "bird"),
    (r"^explore_farm_animals/", "mammal"),
    (r"^memory-sound/LRBark", "mammal"),
    (r"^memory-sound/LRBuddhist_gong|^memory-sound/LRRing", "bell"),
    (r"^memory-sound/LR(Factory|Train|Start)", "machine"),
    (r"^memory-sound/LRDoor|^canal_lock/door", "door"),
    (r"^(canal_lock/water|core/water|clickgame/(drip|bubble)|watercycle/bubble)", "water"),
    (r"^(guessnumber/helicopter|railroad/train|traffic/car)", "machine"),
    (r"^mining/pickaxe", "tool"),
    (r"^target/arrow", "weapon"),
    (r"^reversecount/icy_walk", "footsteps"),
    (r"^memory-sound/LR(Frogs|Rain|Applauses)", "background"),
)


_CREDIT = re.compile(r"^LR|_?LA(_?cut)?$", re.IGNORECASE)  # of the sound library, round the name proper


def _tree(data: bytes, path: str) -> Iterator[tuple[str, int, int]]:
    """(member, flags, offset of its size field) of every file in the archive `data`."""
    if data[:4] != b"qres" or len(data) < 20:
        raise AudioError(f"{path} is not a Qt resource archive")
    version, tree, blobs, names = struct.unpack(">4I", data[4:20])
    node_size = 14 if version < 2 else 22

    def walk(node: int, folder: str) -> Iterator[tuple[str, int, int]]:
        start = tree + node * node_size
        name_at, flags = struct.unpack_from(">IH", data, start)
        length = struct.unpack_from(">H", data, names + name_at)[0]
        first = names + name_at + 6  # past the length and a hash
        name = folder + data[first : first + 2 * length].decode("utf-16-be") if node else ""
        if flags & _DIRECTORY:
            count, child = struct.unpack_from(">II", data, start + 6)
            for index in range(child, child + count):
                yield from walk(index, f"{name}/" if node else "")
        else:
            yield name, flags, blobs + struct.unpack_from(">I", data, start + 10)[0]

    try:
        yield from walk(0, "")
    except (struct.error, UnicodeDecodeError, RecursionError) as error:
        raise AudioError(f"{path} is a broken Qt resource archive: {error}") from error


def rcc_members(path: Path) -> list[str]:
    """Paths of all files inside the Qt resource archive `path`."""
    return sorted(member for member, _, _ in _tree(path.read_bytes(), str(path)))


def rcc_read(path: Path, member: str) -> bytes:
    """Contents of the file `member` of the Qt resource archive `path`; :class:`AudioError` when there is none."""
    data = path.read_bytes()
    for name, flags, at in _tree(data, str(path)):
        if name != member:
            continue
        size = struct.unpack_from(">I", data, at)[0]
        blob = data[at + 4 : at + 4 + size]
        if flags & _ZSTD:
            raise AudioError(f"{path}: {member} is compressed with zstd, which is not read here")
        try:
            return zlib.decompress(blob[4:]) if flags & _COMPRESSED else blob  # 4 bytes: the size unpacked
        except zlib.error as error:
            raise AudioError(f"{path}: {member} is broken: {error}") from error
    raise AudioError(f"{path} has no member {member}")


def _index(root: Path) -> Iterator[Clip]:
    clips = []
    for path in package_folder(root, _FOLDER, _PACKAGE).glob("*.rcc"):
        for member in rcc_members(path):
            stem, _, suffix = member.rpartition("/")[2].rpartition(".")
            label = classify(f"{path.stem}/{stem}", _RULES) if suffix in {"ogg", "wav", "mp3"} else None
            if label is None:
                continue
            kind, sound, instrument = label
            key = f"{path.relative_to(root).as_posix()}!{member}"
            content = (
                f"gcompris:{family(stem.removesuffix('_LA_cut').removesuffix('LACut').removesuffix('_LA').lower())}"
            )
            clips.append(Clip(key, _PACKAGE, kind, content, sound=sound, instrument=instrument, licence=_LICENCE))
    yield from sorted(clips, key=lambda clip: clip.key)


def _read(root: Path, clip: Clip) -> np.ndarray:
    archive, _, member = clip.key.partition("!")
    if not (root / archive).is_file():
        raise AudioError(f"no {root / archive}: install the Debian package {_PACKAGE}")
    return read_bytes(rcc_read(root / archive, member), clip.key)


SOURCE = Source("gcompris", {_PACKAGE: "3.1-2"}, _index, _read)
