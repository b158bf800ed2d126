"""Sources of sounds, instruments and backgrounds, on hand-made packages."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from headrouter_pl.data import AudioError, read_audio
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip, Source
from headrouter_pl.data.pocket.sources import (
    bucklespring,
    gcompris,
    hydrogen,
    lincity,
    lmms,
    lugaru,
    megaglest,
    minetest,
    scorched3d,
    scratch,
    small_packages,
    sonic_pi,
    soundfont,
    tuxpaint_sounds,
    wesnoth,
    widelands,
)
from headrouter_pl.data.pocket.sources._sf2 import SoundFont
from headrouter_pl.data.pocket.sources._table import classify, family, read_bytes

ALL = (
    bucklespring,
    gcompris,
    hydrogen,
    lincity,
    lmms,
    lugaru,
    megaglest,
    minetest,
    scorched3d,
    scratch,
    small_packages,
    sonic_pi,
    soundfont,
    tuxpaint_sounds,
    wesnoth,
    widelands,
)


def tone(seconds: float = 0.1, rate: int = 16_000, level: float = 0.5, frequency: float = 440.0) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def put(root: Path, name: str, samples: np.ndarray | None = None) -> Path:
    """A wav file below usr/share; empty when nothing is to be decoded."""
    path = root / "usr/share" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"") if samples is None else soundfile.write(path, samples, 16_000)
    return path


def listed(source: Source, root: Path) -> dict[str, Clip]:
    return {clip.key.rpartition("/")[2]: clip for clip in source.index(root)}


@pytest.mark.parametrize("module", ALL, ids=lambda module: module.__name__.rpartition(".")[2])
def test_missing_package_is_named(module, tmp_path):
    source = module.SOURCE
    with pytest.raises(AudioError) as caught:
        list(source.index(tmp_path))
    assert any(package in str(caught.value) for package in source.packages)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sword-1", "sword"),
        ("club-miss", "club"),
        ("magic-holy-miss-3", "magic-holy"),
        ("bd_ada", "bd_ada"),
        ("wind", "wind"),
        ("attack1b", "attack"),
        ("01", "01"),
    ],
)
def test_family_drops_the_take_alone(name, expected):
    assert family(name) == expected


def test_first_rule_decides():
    rules = (("^loop", ""), ("flute", "instrument:flute"), ("rain", "background"), ("crow", "bird"))
    assert classify("loop_flute", rules) is None
    assert classify("Flute1", rules) == ("sound", "", "flute")
    assert classify("rain", rules) == ("background", "", "")
    assert classify("crow", rules) == ("sound", "bird", "")
    assert classify("nothing", rules) is None


def test_wesnoth_kinds_and_voices(tmp_path):
    folder = "games/wesnoth/1.16/data/core/sounds"
    for name in ("orc-hit-1", "orc-small-die-2", "human-hit-1", "ambient/birds1", "sword-1", "ambient/night"):
        put(tmp_path, f"{folder}/{name}.ogg")
    put(tmp_path, "games/wesnoth/1.16/sounds/bell.wav")
    clips = listed(wesnoth.SOURCE, tmp_path)
    assert {name: clip.sound or clip.kind for name, clip in clips.items()} == {
        "orc-hit-1.ogg": "monster",
        "orc-small-die-2.ogg": "monster",
        "birds1.ogg": "bird",
        "sword-1.ogg": "weapon",
        "night.ogg": "background",
        "bell.wav": "bell",
    }
    assert clips["orc-hit-1.ogg"].content == clips["orc-small-die-2.ogg"].content == "wesnoth:orc"
    assert list(clips) != sorted(clips)  # folders come before names
    keys = [clip.key for clip in wesnoth.SOURCE.index(tmp_path)]
    assert keys == sorted(keys)
    assert keys[0].startswith("usr/share/games/")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("VariBreaks/VP Hat 1 Cl", "cymbal"),
        ("BJA_Pacific/HH2_03", "cymbal"),
        ("BJA_Pacific/SN4_01", "drum"),
        ("BJA_Pacific/CB_01", None),
        ("The Black Pearl 1.0/PaisteBell-Hard", "cymbal"),
        ("The Black Pearl 1.0/Cowbell-Hard", None),
        ("ForzeeStereo/RimClick-0", None),
        ("circAfrique v4/Djembe1 Slap", "drum"),
        ("HardElectro1/emptySample", None),
        ("rumpf_kit_z01_h2/beats_01-1", None),
    ],
)
def test_hydrogen_kinds(tmp_path, name, kind):
    put(tmp_path, f"hydrogen/data/drumkits/{name}.wav")
    clips = list(hydrogen.SOURCE.index(tmp_path))
    assert [clip.sound for clip in clips] == ([kind] if kind else [])


def test_hydrogen_keeps_kits_of_one_recording_together(tmp_path):
    for kit in ("GMRockKit", "The Black Pearl 1.0", "VariBreaks"):
        put(tmp_path, f"hydrogen/data/drumkits/{kit}/Kick-Hard.wav").write_bytes(kit.encode())
    assert len({clip.content for clip in hydrogen.SOURCE.index(tmp_path)}) == 2


def test_tuxpaint_leaves_speech_out_and_joins_stamps(tmp_path):
    for name in ("mammals/pig", "mammals/pig_golden2", "mammals/pig_desc", "mammals/pig_desc_de", "birds/owl"):
        put(tmp_path, f"tuxpaint/stamps/animals/{name}.ogg").write_bytes(name.encode())
    clips = listed(tuxpaint_sounds.SOURCE, tmp_path)
    assert set(clips) == {"pig.ogg", "pig_golden2.ogg", "owl.ogg"}
    assert clips["pig.ogg"].content == clips["pig_golden2.ogg"].content


def test_megaglest_orders_are_out_animals_and_copies_in_once(tmp_path):
    pack = "games/megaglest/techs/megapack"
    put(tmp_path, f"{pack}/factions/magic/units/battlemage/sounds/battlemage_ack1.wav")
    put(tmp_path, f"{pack}/commondata/sounds/cow_ack1.wav")
    for place in ("forest", "meadow"):
        put(tmp_path, f"games/megaglest/tilesets/{place}/sounds/chicken.wav")
    clips = list(megaglest.SOURCE.index(tmp_path))
    assert sorted(clip.sound for clip in clips) == ["bird", "mammal"]


def test_plain_reader(tmp_path):
    put(tmp_path, "buckle/wav/1e-0.wav", tone())
    put(tmp_path, "buckle/wav/1e-1.wav", np.zeros(100, dtype=np.float32))
    put(tmp_path, "buckle/wav/notes.wav")
    source = bucklespring.SOURCE
    press, release = source.index(tmp_path)
    assert press.content == release.content
    assert source.read is not None
    np.testing.assert_allclose(source.read(tmp_path, press), tone(), atol=1e-4)
    with pytest.raises(AudioError, match="silent"):
        source.read(tmp_path, release)


def rcc(path: Path, files: dict[str, bytes], flags: int = 0) -> None:
    """Write a Qt resource archive (format 3) with all files in one folder."""
    names, data, nodes = b"", b"", []
    entries = [("sounds", None), *files.items()]
    for name, blob in entries:
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if blob is None:
            nodes.append(struct.pack(">IHII8x", at, 2, len(files), 2))
            continue
        packed = struct.pack(">I", len(blob)) + zlib.compress(blob) if flags & 1 else blob
        nodes.append(struct.pack(">IHHHI8x", at, flags, 0, 0, len(data)))
        data += struct.pack(">I", len(packed)) + packed
    tree = struct.pack(">IHII8x", 0, 2, 1, 1) + b"".join(nodes)
    start = 24
    head = b"qres" + struct.pack(">5I", 3, start, start + len(tree), start + len(tree) + len(data), 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + tree + data + names)


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize("flags", [0, 1])
def test_gcompris_reads_members(tmp_path, flags):
    path = tmp_path / "usr/share/gcompris-qt/rcc/instruments.rcc"
    rcc(path, {"harp.wav": wav(tone()), "cymbal.wav": wav(0 * tone()), "harp.svg": b"picture"}, flags)
    assert gcompris.rcc_members(path) == ["sounds/cymbal.wav", "sounds/harp.svg", "sounds/harp.wav"]
    assert gcompris.rcc_read(path, "sounds/harp.svg") == b"picture"
    cymbal, harp = gcompris.SOURCE.index(tmp_path)
    assert harp.key == "usr/share/gcompris-qt/rcc/instruments.rcc!sounds/harp.wav"
    assert (harp.kind, harp.instrument, harp.sound) == ("sound", "harp", "")
    assert (cymbal.sound, cymbal.instrument) == ("cymbal", "")
    assert gcompris.SOURCE.read is not None
    np.testing.assert_allclose(gcompris.SOURCE.read(tmp_path, harp), tone(), atol=1e-4)
    with pytest.raises(AudioError, match="silent"):
        gcompris.SOURCE.read(tmp_path, cymbal)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_files_in_memory_are_read_as_files_are(tmp_path, rate):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 4, 2))
    for name, fmt in (("a.wav", "WAV"), ("a.ogg", "OGG"), ("a.flac", "FLAC")):
        soundfile.write(tmp_path / name, samples, rate, format=fmt)
        got = read_bytes((tmp_path / name).read_bytes(), name)
        np.testing.assert_array_equal(got, read_audio(tmp_path / name, SAMPLING_RATE))


def test_files_in_memory_that_cannot_be_used_are_named():
    for data, why in (
        (b"no sound", "cannot be read"),
        (b"", "cannot be read"),
        (wav(0 * tone()), "is silent"),
        (wav(tone()[:1], 48_000), "is empty at 16000 Hz"),
    ):
        with pytest.raises(AudioError, match=rf"shelf/a\.wav {why}"):
            read_bytes(data, "shelf/a.wav")


def test_broken_archives_are_told(tmp_path):
    path = tmp_path / "a.rcc"
    rcc(path, {"a.wav": b"x"}, flags=4)
    with pytest.raises(AudioError, match="zstd"):
        gcompris.rcc_read(path, "sounds/a.wav")
    with pytest.raises(AudioError, match="no member"):
        gcompris.rcc_read(path, "sounds/b.wav")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(AudioError, match="broken"):
        gcompris.rcc_members(path)
    path.write_bytes(b"something else")
    with pytest.raises(AudioError, match="not a Qt"):
        gcompris.rcc_members(path)


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)


def sf2(path: Path, programs: list[int], rate: int = 22_050) -> None:
    """Write a soundfont: every program plays one looped sine of key 69 (440 Hz) over keys 0 ... 100."""
    period = rate / 440
    points = (16_000 * np.sin(2 * np.pi * np.arange(rate) / period)).astype("<i2")
    loop = (1000, 1000 + round(period * 40))
    headers, bags = b"", b""
    for at, program in enumerate(programs):
        headers += struct.pack("<20sHHH12x", b"p", program, 0, at)
        bags += struct.pack("<HH", at, 0)
    headers += struct.pack("<20sHHH12x", b"EOP", 0, 0, len(programs))
    bags += struct.pack("<HH", len(programs), 0)
    keys = (43, 100 << 8)  # low byte: lowest key
    tables = {
        b"phdr": headers,
        b"pbag": bags,
        b"pgen": struct.pack("<HH", 41, 0) * len(programs),
        b"inst": struct.pack("<20sH", b"i", 0) + struct.pack("<20sH", b"EOI", 2),
        # A global zone (release) and one zone.
        b"ibag": struct.pack("<HHHHHH", 0, 0, 1, 0, 4, 0),
        b"igen": struct.pack("<HHHHHHHH", 38, 65536 - 4800, *keys, 54, 1, 53, 0),
        b"shdr": struct.pack("<20sIIIIIBbHH", b"s", 0, len(points), *loop, rate, 69, 0, 0, 1) + bytes(46),
    }
    body = chunk(b"LIST", b"INFO") + chunk(b"LIST", b"sdta" + chunk(b"smpl", points.tobytes()))
    body += chunk(b"LIST", b"pdta" + b"".join(chunk(name, data) for name, data in tables.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(chunk(b"RIFF", b"sfbk" + body))


@pytest.mark.parametrize(("key", "frequency"), [(69, 440.0), (81, 880.0), (57, 220.0)])
def test_soundfont_plays_the_key(tmp_path, key, frequency):
    sf2(tmp_path / "a.sf2", [0, 40])
    note = SoundFont(tmp_path / "a.sf2").play(40, key, 2.0, 16_000)  # longer than the sample: the loop carries it
    held = note[4000:28_000] * np.hanning(24_000)
    assert abs(np.argmax(np.abs(np.fft.rfft(held))) * 16_000 / 24_000 - frequency) < 2
    assert np.abs(note[-100:]).max() < 0.05 * np.abs(note).max()  # let go


def test_soundfont_tells_what_is_missing(tmp_path):
    sf2(tmp_path / "a.sf2", [0])
    font = SoundFont(tmp_path / "a.sf2")
    with pytest.raises(AudioError, match="no program 5"):
        font.play(5, 60, 0.1, 16_000)
    with pytest.raises(AudioError, match="no sample for key 120"):
        font.play(0, 120, 0.1, 16_000)
    (tmp_path / "b.sf2").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match="not a SoundFont"):
        SoundFont(tmp_path / "b.sf2")
    with pytest.raises(AudioError, match="no soundfont"):
        SoundFont(tmp_path / "c.sf2")


def test_soundfont_clips(tmp_path):
    programs = sorted({program for programs, _, _, _ in soundfont._INSTRUMENTS.values() for program in programs})
    sf2(tmp_path / "usr/share/sounds/sf2/TimGM6mb.sf2", programs)
    clips = list(soundfont.SOURCE.index(tmp_path))
    assert {clip.package for clip in clips} == {"timgm6mb-soundfont"}
    assert len({clip.key for clip in clips}) == len(clips)
    assert clips[0].key.startswith("usr/share/sounds/sf2/TimGM6mb.sf2!")
    assert len({clip.content for clip in clips}) == 3 * len(programs)
    assert soundfont.SOURCE.read is not None
    for clip in clips[:: len(clips) // 12]:
        sound = soundfont.SOURCE.read(tmp_path, clip)
        assert sound.dtype == np.float32
        assert 0.8 * 16_000 < len(sound) < 5 * 16_000
        assert np.abs(sound).max() == pytest.approx(0.5)
        np.testing.assert_array_equal(sound, soundfont.SOURCE.read(tmp_path, clip))


@pytest.mark.parametrize("instrument", sorted(soundfont._INSTRUMENTS))
def test_tunes_stay_in_range(instrument):
    _, low, high, chords = soundfont._INSTRUMENTS[instrument]
    for variant in range(60):
        notes = soundfont._tune(f"key {variant}", instrument, variant)
        keys = [key for _, _, struck in notes for key in struck]
        assert low - 2 <= min(keys)
        assert max(keys) <= high
        assert chords or all(len(struck) == 1 for _, _, struck in notes)
