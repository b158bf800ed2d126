"""``headrouter-pl data pocket``, with nothing installed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headrouter_pl.cli import main
from headrouter_pl.data import AudioError
from headrouter_pl.data.pocket import PocketBenchmark, PocketItem, library


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run, in place of running it; nothing is installed."""
    found: list[list[str]] = []

    def run(command: list[str], **options: Any) -> Any:
        found.append(command)
        return subprocess.CompletedProcess(command, 100 if "install" in command else 1, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_install_prints_the_line(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "pocket", "--install"])
    line = capsys.readouterr().out.strip()
    assert "apt-get install --yes --no-install-recommends" in line
    assert all(f" {name}" in line for name in library.packages())
    assert commands == []


def test_install_and_run(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", "pocket", "--install", "--run"])
    assert caught.value.code == 100  # apt's own
    (command,) = commands
    assert capsys.readouterr().out.split() == command


def test_run_alone_is_refused(commands: list[list[str]]) -> None:
    with pytest.raises(SystemExit, match="--install"):
        main(["data", "pocket", "--run"])
    assert commands == []


def test_missing_packages_are_named_at_once(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADROUTER_CACHE", str(tmp_path))
    with pytest.raises(AudioError) as caught:
        main(["data", "pocket"])
    assert all(name in str(caught.value) for name in library.packages())
    assert "data pocket --install" in str(caught.value)


def test_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "manifest": [{"key": "a", "kind": "speech"}, {"key": "b", "kind": "speech"}, {"key": "c", "kind": "sound"}],
        "scenes": [
            {"audio": "008-000.flac", "seconds": 8.0, "events": [{"clip": key, "start": i, "end": i + 1.0}]}
            for i, key in enumerate("a")
        ],
    }
    rows["scenes"][0]["events"] += [{"clip": "b", "start": 2, "end": 3.0}, {"clip": "c", "start": 4, "end": 5.0}]
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = [
        PocketItem(f"k{i}", "008-000.flac", 8.0, task, kind, "?", "!", (), 0.1, ((start, start + 1),), ((0, 1),))
        for i, (task, kind, start) in enumerate([("code", "semantic", 0.0), ("sound", "sound", 4.0)])
    ]
    left_out: dict[str, list[str]] = {"too short": ["usr/b.wav", "usr/a.wav"], "not decoded": ["usr/c.wav"]}
    asked: dict[str, Any] = {}

    def open_benchmark(split: str, **options: Any) -> PocketBenchmark:
        asked.update(options, split=split)
        return PocketBenchmark(tmp_path, items, left_out)

    monkeypatch.setattr(PocketBenchmark, "open", open_benchmark)
    main(["data", "pocket", "--split", "validation", "--scenes", "3", "--seed", "5"])
    assert asked == {"split": "validation", "scenes": 3, "seed": 5}
    out = capsys.readouterr().out
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    assert table[0] == ["task", "type", "8 s", "15 s", "30 s", "60 s", "120 s", "300 s", "all"]
    assert ["code", "semantic", "1", "0", "0", "0", "0", "0", "1"] in table
    assert table[-1] == ["all", "", "2", "0", "0", "0", "0", "0", "2"]
    assert "1 audios, 0.00 h, of 3 clips." in out
    assert "two or more voices and a sound: 100%" in out
    assert "at different places: 100%" in out
    assert "3 recordings left out: too short 2 (first usr/b.wav), not decoded 1 (first usr/c.wav).\n" in out
    assert str(tmp_path) in out
    left_out.clear()
    main(["data", "pocket"])
    assert "left out" not in capsys.readouterr().out


def test_any_data_module_can_be_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([
            "fit", "--model", "headrouter_pl.LALMModule", "--model.model", "pocket",
            "--data", "headrouter_pl.data.pocket.PocketDataModule", "--data.stages", '[{"samples": 7, "windows": 2}]',
            "--print_config",
        ])  # fmt: skip
    assert caught.value.code == 0
    assert "PocketDataModule" in (out := capsys.readouterr().out)
    assert "samples: 7" in out
