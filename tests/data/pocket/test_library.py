"""The library: what is cached is whole, and what is wrong is said."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.pocket import library as library_module
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip, Source
from headrouter_pl.data.pocket.library import ClipLibrary, even_out, install_command, missing_packages
from headrouter_pl.data.sealed import is_sealed

RATE = SAMPLING_RATE


def tone(seconds: float, pitch: float = 440.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def key(number: int, sealed: bool = False) -> str:
    return next(name for i in range(99) if is_sealed(name := f"usr/share/t/{number}-{i}.wav") == sealed)


def plant(root: Path, *lengths: float, sealed: tuple[int, ...] = ()) -> Source:
    """A source of tones of these lengths."""
    clips = []
    for number, seconds in enumerate(lengths):
        clips.append(Clip(key(number, number in sealed), "tones", "speech", voice=f"v{number}", content="train it"))
        path = root / clips[-1].key
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(seconds, 300 + 100 * number), RATE)
    return Source("t", {}, lambda _: iter(clips))


def open_library(source: Source, root: Path, **options: bool) -> ClipLibrary:
    return ClipLibrary.open([source], root=root, cache=root / "cache", progress=False, **options)


class TestOpen:
    def test_clips_their_audio_and_their_digests(self, tmp_path: Path) -> None:
        library = open_library(plant(tmp_path, 0.5, 1.0, 9.0), tmp_path)
        assert [library.seconds(i) for i in range(3)] == pytest.approx([0.5, 1.0, 8.0], abs=0.02)
        assert list(library.cut) == [False, False, True]
        assert len(set(library.digests)) == 3
        assert not library.dropped
        for index, pitch in enumerate((300, 400, 500)):
            audio = library.audio(index)
            assert audio.dtype == np.float32
            assert np.abs(np.fft.rfft(audio)).argmax() * RATE / len(audio) == pytest.approx(pitch, abs=5)

    def test_the_cache_is_used_again(self, tmp_path: Path) -> None:
        source = plant(tmp_path, 0.5, 0.6)
        first = open_library(source, tmp_path)
        (tmp_path / first.clips[0].key).unlink()  # no longer needed
        again = open_library(source, tmp_path)
        assert again.name == first.name
        np.testing.assert_array_equal(again.audio(0), first.audio(0))

    def test_copies_are_left_out(self, tmp_path: Path) -> None:
        source = plant(tmp_path, 0.5, 0.6, 0.7)
        clips = list(source.index(tmp_path))
        (tmp_path / clips[1].key).write_bytes((tmp_path / clips[0].key).read_bytes())
        library = open_library(source, tmp_path)
        assert [clip.key for clip in library.clips] == [clips[0].key, clips[2].key]
        assert dict(library.dropped) == {clips[1].key: f"a copy of {clips[0].key}"}
        assert library.left_out() == {"copied": [clips[1].key]}
        assert [library.seconds(i) for i in range(2)] == pytest.approx([0.5, 0.7], abs=0.02)
        assert np.abs(np.fft.rfft(library.audio(1))).argmax() / library.seconds(1) == pytest.approx(500, abs=5)
        assert open_library(replace(source, index=lambda _: iter(clips[:1])), tmp_path).name != library.name

    def test_copies_under_two_headers_are_in_one_split(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = plant(tmp_path, 0.5, 0.6, 0.7)
        clips = list(source.index(tmp_path))
        samples, rate = soundfile.read(tmp_path / clips[2].key, dtype="int16")
        soundfile.write(tmp_path / clips[0].key, samples, rate, subtype="FLOAT")  # the same samples, another file
        splits = dict(zip((clip.key for clip in clips), ("test", "train", "train"), strict=True))
        monkeypatch.setattr(library_module, "split_of", lambda clip: splits[clip.key])
        library = open_library(source, tmp_path)
        assert [clip.key for clip in library.clips] == [clips[1].key, clips[2].key]
        assert library.splits == ["train", "train"]
        assert [library.seconds(i) for i in range(2)] == pytest.approx([0.6, 0.7], abs=0.02)
        assert dict(library.dropped) == {clips[0].key: f"a copy of {clips[2].key}, train"}

    def test_other_clips_make_another_library(self, tmp_path: Path) -> None:
        source = plant(tmp_path, 0.5, 0.6)
        clips = list(source.index(tmp_path))
        other = replace(source, index=lambda _: iter([clips[0], replace(clips[1], gender="man")]))
        assert open_library(source, tmp_path).name != open_library(other, tmp_path).name

    def test_half_a_folder_is_built_again(self, tmp_path: Path) -> None:
        source = plant(tmp_path, 0.5, 0.6)
        first = open_library(source, tmp_path)
        folder = first.files[0].parent
        (folder / "library.json").unlink()  # written last: killed before
        first.files[0].write_bytes(b"half")
        again = open_library(source, tmp_path)
        assert len(again.clips) == 2
        assert again.seconds(1) == pytest.approx(0.6, abs=0.02)

    @pytest.mark.parametrize(("file", "kept"), [("clips.i16", -2), ("clips.i16", 0), ("library.json", -9)])
    def test_a_short_file_is_built_again(self, tmp_path: Path, file: str, kept: int) -> None:
        source = plant(tmp_path, 0.5, 0.6)
        first = open_library(source, tmp_path)
        whole = [first.audio(i).copy() for i in range(2)]
        path = first.files[0].with_name(file)
        path.write_bytes(path.read_bytes()[:kept])
        again = open_library(source, tmp_path)
        assert again.name == first.name
        for index, samples in enumerate(whole):
            np.testing.assert_array_equal(again.audio(index), samples)

    def test_a_stop_while_building_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = plant(tmp_path, 0.5)

        def stop(*args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(library_module.os, "replace", stop)
            with pytest.raises(KeyboardInterrupt):
                open_library(source, tmp_path)
        assert [path.suffix for path in (tmp_path / "cache/pocket-clips").iterdir()] == [".lock"]
        assert len(open_library(source, tmp_path).clips) == 1

    def test_what_does_not_decode_is_listed(self, tmp_path: Path) -> None:
        source = plant(tmp_path, 0.5, 0.6, 0.05, 0.7)
        broken, short = (list(source.index(tmp_path))[i].key for i in (1, 2))
        silent = list(source.index(tmp_path))[3].key
        (tmp_path / broken).write_bytes(b"not audio")
        soundfile.write(tmp_path / silent, np.zeros(RATE), RATE)
        said = rf"t: 1 of 4 recordings cannot be decoded .* {broken} \(.*cannot be read as audio.*Install tones anew"
        with pytest.warns(UserWarning, match=said):
            library = open_library(source, tmp_path)
        again = open_library(source, tmp_path)  # from the cache, without a warning
        for found in (library, again):
            assert found.left_out() == {"not decoded": [broken], "too short": [short], "silent": [silent]}
        assert [clip.voice for clip in library.clips] == ["v0"]
        assert set(library.dropped) == {broken, short, silent}
        assert "silent" in library.dropped[silent]
        assert "0.15 s" in library.dropped[short]

    def test_a_file_without_a_sample_is_too_short(self, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
        source = plant(tmp_path, 0.5, 0.6)
        empty = list(source.index(tmp_path))[1].key
        soundfile.write(tmp_path / empty, np.zeros(0), RATE)
        assert open_library(source, tmp_path).left_out() == {"too short": [empty]}
        assert not recwarn.list

    def test_sealed_clips_are_left_out_unless_asked_for(self, tmp_path: Path) -> None:
        source = plant(tmp_path, 0.5, 0.6, 0.7, sealed=(1,))
        library, sealed = open_library(source, tmp_path), open_library(source, tmp_path, sealed=True)
        assert [clip.voice for clip in library.clips] == ["v0", "v2"]
        assert "sealed" not in library.splits
        assert [clip.voice for clip in sealed.clips] == ["v1"]
        assert list(sealed.splits) == ["sealed"]


class TestPackages:
    SOURCES = (
        Source("a", {"birds": "1.0", "bells": "2.0-1"}, lambda root: iter(())),
        Source("b", {"drums": "3"}, lambda root: iter(())),
    )

    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = "birds\tinstalled\t1.0\nbells\tinstalled\t2.0-2\ndrums\tconfig-files\t3\n"
        done = type("Done", (), {"stdout": rows})()
        monkeypatch.setattr(library_module.subprocess, "run", lambda *args, **options: done)

    @pytest.mark.usefixtures("installed")
    def test_missing_and_other_versions(self) -> None:
        wrong = {"bells": "version 2.0-2, expected 2.0-1", "drums": "not installed"}
        assert missing_packages(self.SOURCES) == wrong

    @pytest.mark.usefixtures("installed")
    def test_all_are_named_in_one_error(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError) as caught:
            ClipLibrary.open(self.SOURCES, cache=tmp_path)
        missing, other = str(caught.value).split("packages of the Pocket benchmark are there in another version:")
        assert "drums: not installed" in missing
        assert "data pocket --install" in missing
        assert "bells: version 2.0-2, expected 2.0-1" in other
        assert "on another release of Debian it cannot be built" in other
        assert "birds" not in missing + other

    @pytest.mark.usefixtures("installed")
    @pytest.mark.parametrize(("source", "said"), [(0, "in another version:"), (1, "are missing:")])
    def test_what_is_not_wrong_is_not_said(self, tmp_path: Path, source: int, said: str) -> None:
        with pytest.raises(AudioError) as caught:
            ClipLibrary.open(self.SOURCES[source : source + 1], cache=tmp_path)
        assert said in str(caught.value)
        assert str(caught.value).count("packages of the Pocket benchmark") == 1

    def test_nothing_installed(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError) as caught:
            ClipLibrary.open(cache=tmp_path)
        assert all(f"{name}: not installed" in str(caught.value) for name in library_module.packages())

    def test_not_debian(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(*args: object, **options: object) -> None:
            raise FileNotFoundError("dpkg-query")

        monkeypatch.setattr(library_module.subprocess, "run", absent)
        with pytest.raises(AudioError, match="dpkg-query is not here"):
            missing_packages(self.SOURCES)

    def test_the_line_names_every_package_once(self) -> None:
        command = install_command()
        assert command[:2] == ["apt-get", "install"]
        assert len(set(command)) == len(command)
        assert set(library_module.packages()) < set(command)


class TestEvenOut:
    def test_bandwidth(self) -> None:
        even = even_out(tone(1.0, 1000) + tone(1.0, 6000))
        spectrum = np.abs(np.fft.rfft(even)) ** 2
        frequency = np.fft.rfftfreq(len(even), 1 / RATE)
        assert spectrum[frequency > 4200].sum() < 1e-4 * spectrum.sum()

    @pytest.mark.parametrize("level", [0.003, 0.1, 0.9])
    def test_loudness(self, level: float) -> None:
        even = even_out(tone(1.0, level=level))
        assert 20 * np.log10(np.sqrt(np.mean(even**2))) == pytest.approx(-22, abs=0.3)

    def test_peak(self) -> None:
        clicks = np.zeros(RATE, np.float32)
        clicks[::1000] = 0.9
        even = even_out(clicks + tone(1.0, level=1e-3))
        assert np.abs(even).max() <= 0.95 + 1e-6

    def test_silence_at_the_ends_is_trimmed(self) -> None:
        quiet = np.zeros(RATE // 2, np.float32)
        assert len(even_out(np.concatenate([quiet, tone(0.5), quiet]))) / RATE == pytest.approx(0.5, abs=0.04)

    def test_long_ones_are_cut(self) -> None:
        assert len(even_out(tone(11.0))) == 8 * RATE

    @pytest.mark.parametrize("samples", [np.zeros(RATE, np.float32), np.zeros(0, np.float32), tone(0.05)])
    def test_nothing_to_hear(self, samples: np.ndarray) -> None:
        with pytest.raises(AudioError):
            even_out(samples)


def test_names_are_imported_when_used() -> None:
    package = importlib.import_module("headrouter_pl.data.pocket")
    assert package.ClipLibrary is ClipLibrary
    assert set(package.__all__) == set(dir(package))
    with pytest.raises(AttributeError, match="Clipp"):
        _ = package.Clipp
