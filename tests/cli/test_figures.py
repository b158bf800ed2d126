"""Spectrograms, the picture of a sample, and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrouter_pl.cli.figures import draw_sample
from headrouter_pl.cli.tables import format_table, machine
from headrouter_pl.pictures import mel_spectrogram
from headrouter_pl.pruning.report import SampleReport

RATE = 16_000


def tone(frequency: float, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


class TestMelSpectrogram:
    def test_shape_and_range(self) -> None:
        noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
        mel = mel_spectrogram(noise, RATE)
        assert mel.shape == (80, 51)
        assert mel_spectrogram(noise, RATE, bands=40, hop=0.01).shape == (40, 101)
        assert mel.max() == 0  # the loudest bin
        assert mel.min() >= -80
        quiet = mel_spectrogram(noise / 100, RATE)
        np.testing.assert_allclose(quiet, mel, atol=1e-3)

    def test_a_tone_stands_in_its_band(self) -> None:
        def mel(frequency: float) -> float:  # Slaney: linear to 1 kHz, then logarithmic
            return 3 * frequency / 200 if frequency < 1000 else 15 + np.log(frequency / 1000) / (np.log(6.4) / 27)

        for frequency in (300.0, 1000.0, 3000.0):
            loudest = mel_spectrogram(tone(frequency), RATE)[:, 10:-10].mean(1).argmax()
            centre = mel(frequency) / mel(RATE / 2) * 81 - 1  # 80 bands between 82 edges
            assert abs(loudest - centre) <= 1

    def test_time_runs_along(self) -> None:
        sound = np.concatenate([np.zeros(RATE, np.float32), tone(500.0)])
        loud = mel_spectrogram(sound, RATE).max(0)
        assert (loud[:48] == -80).all()
        assert (loud[53:] > -20).all()

    def test_silence(self) -> None:
        assert (mel_spectrogram(np.zeros(RATE, np.float32), RATE) == 0).all()


class TestDrawSample:
    @pytest.fixture
    def figures(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        pyplot = pytest.importorskip("matplotlib.pyplot")
        found: list[Any] = []
        monkeypatch.setattr(pyplot, "close", found.append)
        return found

    def report(self, **given: Any) -> SampleReport:
        settings: dict[str, Any] = {
            "seen": 5, "kept": torch.tensor([8, 11]), "route": {"semantic": 0.25, "acoustic": 0.75}, "types": {},
            "importance": torch.tensor([0.1, 0.4, 0.1, 0.1, 0.3]), "selectivity": torch.rand(4),
            "head_weights": torch.rand(4), "tokens_per_layer": (5, 2),
        }  # fmt: skip
        return SampleReport(**{**settings, **given})

    def test_writes_a_picture_of_what_was_kept(self, tmp_path: Path, figures: list[Any]) -> None:
        path = tmp_path / "new" / "sample.png"
        draw_sample(tone(500.0), RATE, self.report(), 7, path)
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        (figure,) = figures
        top, middle, bottom = figure.axes
        assert top.get_title() == "2 of 5 audio tokens kept  ·  route: semantic 0.25, acoustic 0.75"
        assert (np.asarray(top.images[1].get_array())[0, :, 3] == 0).tolist() == [False, True, False, False, True]
        assert top.images[1].get_extent()[:2] == [0, 1.0]
        importance, kept = middle.lines
        np.testing.assert_allclose(importance.get_xdata(), [0.1, 0.3, 0.5, 0.7, 0.9])
        np.testing.assert_allclose(kept.get_xdata(), [0.3, 0.9])
        np.testing.assert_allclose(kept.get_ydata(), [0.4, 0.3])
        assert len(bottom.patches) == 8

    def test_signed_scores_of_several_layers(self, tmp_path: Path, figures: list[Any]) -> None:
        importance = torch.tensor([-0.1, 0.4, 0.1, -0.2, 0.3])
        report = self.report(
            importance=importance, probed_layers=(1, 3), head_weights=torch.tensor([0.2, -0.4, 0.3, 0.1])
        )
        draw_sample(tone(500.0), RATE, report, 7, tmp_path / "sample.png")
        _, middle, bottom = figures[0].axes
        assert middle.get_yscale() == "linear"
        assert min(middle.get_ylim()) < -0.2
        assert [label.get_text() for label in bottom.get_xticklabels()] == ["1", "3"]
        assert bottom.get_xticks().tolist() == [0, 2]
        draw_sample(tone(500.0), RATE, self.report(probed_layers=(1,)), 7, tmp_path / "sample.png")
        assert figures[1].axes[1].get_yscale() == "log"
        assert figures[1].axes[2].get_xlabel() == "head of layer 1"

    def test_of_a_sample_that_was_left_whole(self, tmp_path: Path, figures: list[Any]) -> None:
        report = self.report(kept=torch.arange(7, 12), importance=None, selectivity=None, head_weights=None, route={})
        draw_sample(tone(500.0), RATE, report, 7, tmp_path / "sample.png")
        assert figures[0].axes[0].get_title() == "5 of 5 audio tokens kept"
        assert not np.asarray(figures[0].axes[0].images[1].get_array())[0, :, 3].any()

    def test_a_drawing_that_fails_is_closed_and_not_written(self, tmp_path: Path, figures: list[Any]) -> None:
        with pytest.raises(ValueError, match="format code"):
            draw_sample(tone(500.0), RATE, self.report(route={"voice": "much"}), 7, tmp_path / "new" / "sample.png")
        assert len(figures) == 1
        assert not [*tmp_path.iterdir()]


class TestTables:
    def test_format_table(self) -> None:
        table = format_table([{"scorer": "fastv", "kept": 3}, {"scorer": "headrouter", "kept": 12345}])
        assert table.splitlines() == [
            "| scorer     | kept  |",
            "|------------|-------|",
            "| fastv      | 3     |",
            "| headrouter | 12345 |",
        ]

    def test_machine(self) -> None:
        if torch.cuda.is_available():
            assert machine() == torch.cuda.get_device_name()
        else:
            assert f"{torch.get_num_threads()} of " in machine()
