"""``headrouter-pl benchmark`` on narrow models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_pocket
import torch
from narrow import narrow

from headrouter_pl.cli import benchmark as command
from headrouter_pl.cli import main
from headrouter_pl.cli.benchmark import benchmark, scaling
from headrouter_pl.errors import ConfigurationError, HeadRouterError, UnknownNameError
from headrouter_pl.models.shapes import SHAPES
from headrouter_pl.profiles import HeadProfile

torch.set_num_threads(1)

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK: dict[str, Any] = {"lengths": [2.0], "keep_ratios": [1.0, 0.5], "runs": 1, "decode_tokens": 2, "memory": False}


@pytest.fixture(autouse=True)
def narrow_pocket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "pocket", narrow("pocket"))


@pytest.fixture
def no_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_peak_of_fresh_process", command._peak_here)


def test_command_prints_and_writes(no_new_process: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "figures.json"
    main([
        "benchmark", "--model", "pocket", "--lengths", "[2, 4, 6]", "--keep_ratios", "[1.0, 0.5]", "--layers", "[1]",
        "--batch_sizes", "[2]", "--runs", "2", "--decode_tokens", "2", "--num_layers", "3", "--output", str(path),
    ])  # fmt: skip
    figures = json.loads(path.read_text())
    assert figures["command"].startswith("headrouter-pl benchmark --model pocket")
    assert figures["device"]
    rows = figures["rows"]
    assert [(row["length_s"], row["keep_ratio"]) for row in rows] == [(s, r) for s in (2, 4, 6) for r in (1.0, 0.5)]
    for row in rows:
        assert {name: row[name] for name in ("shape", "batch", "layer", "attention", "runs", "num_layers")} == {
            "shape": "pocket", "batch": 2, "layer": 1, "attention": "sdpa", "runs": 2, "num_layers": 3
        }  # fmt: skip
        assert row["audio_tokens"] == 2 * 25 * row["length_s"]
        assert row["audio_tokens_kept"] == row["audio_tokens"] * row["keep_ratio"]
        assert row["kv_bytes"] == row["kv_bytes_formula"]
        assert all(row[name] > 0 for name in ("prefill_ratio", "first_token_ratio", "decode_ratio", "overhead_share"))
        assert row["peak_memory_ratio"] == pytest.approx(row["peak_bytes"] / row["peak_bytes_unpruned"], abs=1e-4)
    assert {row["ideal_ratio"] for row in rows if row["keep_ratio"] == 1} == {1.0}
    ideals = [row["ideal_ratio"] for row in rows if row["keep_ratio"] == 0.5]
    assert all(0.5 < ideal < 1 for ideal in ideals)
    assert [fit["keep_ratio"] for fit in figures["scaling"]] == [1.0, 0.5]

    out = capsys.readouterr().out
    page = path.with_suffix(".md").read_text()
    table = [line for line in out.splitlines() if line.startswith("| 2 x")]
    assert len(table) == 6
    assert all(line in page for line in table)
    assert f"{ideals[0]:.3f}" in table[1]
    assert figures["command"] in page
    assert "3 decoder layers, float32; n = 2 runs" in page
    assert "## Overhead over length" in page
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_peak_memory_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other process has the true shape.
    monkeypatch.undo()
    arguments = ("pocket", "float32", 2, 1, 1)
    block = command._Block("sdpa", 1, 1.0, {"scorer": "headrouter"}, {"half": (1, 0.5)})
    assert command._peak_of_fresh_process(arguments, block, "half") > 200 * 2**20  # its weights alone are more


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    log, output = str(tmp_path / "rows.jsonl"), tmp_path / "figures.json"
    settings = {**QUICK, "lengths": [2.0, 3.0], "log": log}
    assert benchmark(**settings, max_minutes=0, output=str(output))["rows"] == []
    assert "2 of 2" in capsys.readouterr().out
    assert json.loads(output.read_text())["rows"] == []
    assert not output.with_suffix(".md").exists()

    measured: list[float] = []
    measure = command._measure_block

    def stopping(bench: Any, block: Any, *rest: Any) -> Any:
        if measured:
            raise KeyboardInterrupt
        measured.append(block.length)
        return measure(bench, block, *rest)

    monkeypatch.setattr(command, "_measure_block", stopping)
    with pytest.raises(KeyboardInterrupt):
        benchmark(**settings)
    first = json.loads(Path(log).read_text().splitlines()[1])
    # A killed run may have left a part of the second length.
    monkeypatch.setattr(command, "_measure_block", measure)
    rows = benchmark(**settings)["rows"]
    assert [(row["length_s"], row["keep_ratio"]) for row in rows] == [(s, r) for s in (2, 3) for r in (1.0, 0.5)]
    assert rows[0]["prefill_s"] == first["prefill_s"]  # not measured again
    lines = Path(log).read_text().splitlines()
    Path(log).write_text("\n".join(lines[:4]) + "\n")
    assert len(benchmark(**settings)["rows"]) == 4
    monkeypatch.setattr(command, "_measure_block", stopping)
    assert len(benchmark(**settings)["rows"]) == 4
    with pytest.raises(HeadRouterError, match="other runs"):
        benchmark(**{**settings, "runs": 2})


def test_a_checkpoint(tmp_path: Path) -> None:
    tiny_pocket.build().save_pretrained(tmp_path)
    tiny_pocket.make_processor().save_pretrained(tmp_path)
    (row,) = benchmark(str(tmp_path), **{**QUICK, "keep_ratios": [0.5], "batch_sizes": [2], "layers": [1]})["rows"]
    assert (row["audio_tokens"], row["audio_tokens_kept"]) == (100, 50)
    assert row["kv_bytes"] == row["kv_bytes_formula"]
    assert row["num_layers"] == 4
    with pytest.raises(ConfigurationError, match="are for shapes"):
        benchmark(str(tmp_path), num_layers=2)


def test_scaling_is_fitted_where_there_are_three_lengths() -> None:
    rows = [
        {"batch": 1, "attention": "sdpa", "layer": 2, "keep_ratio": ratio, "length_s": length,
         "overhead_parts_s": {"probing": length * 1e-3, "routing": 0.002}}
        for ratio, lengths in ((0.5, (30, 60, 300)), (0.1, (30, 60))) for length in lengths
    ]  # fmt: skip
    (fit,) = scaling(rows)
    assert fit == {
        "batch": 1, "attention": "sdpa", "layer": 2, "keep_ratio": 0.5, "seconds_per_second": 0.001,
        "offset_s": 0.002, "r2": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lengths": []}, "lengths must name at least one value"),
        ({"layers": []}, "layers must name at least one value"),
        ({"keep_ratios": [0.5, 0.5]}, r"each once, got \[0.5, 0.5\]"),
        ({"batch_sizes": [1, 0]}, "batch_sizes must be at least 1, got 0"),
        ({"runs": 0}, "runs must be at least 1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"decode_tokens": -1}, "decode_tokens must be at least 0, got -1"),
        ({"output": "figures.md"}, r"must be a \.json file"),
        ({"dtype": "float33"}, r"Unknown dtype 'float33'\. Did you mean 'float32'"),
        ({"num_layers": 9}, r"num_layers must be in 1\.\.4"),
        ({"keep_ratios": [1.5]}, r"keep_ratio must be in \(0, 1\], got 1.5"),
        ({"lengths": [0.0]}, "Audio must have at least"),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        benchmark(**{**QUICK, **given})


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'qwen2_audio_7b'"):
        benchmark("qwen2_audio")
    with pytest.raises(UnknownNameError, match="Unknown scorer"):
        benchmark(**QUICK, scorer="fastw")
    with pytest.raises(UnknownNameError, match="Unknown profile"):
        benchmark(**QUICK, profile="pocket-dep")


def test_a_profile_is_measured_with_its_passes(tmp_path: Path) -> None:
    HeadProfile("scouting", weights=torch.full((3, 4), 0.25), layers=(2,), pool=4).save(
        tmp_path / "scouting.safetensors"
    )
    own, scouting = [
        benchmark(**{**QUICK, "keep_ratios": [0.5], "layers": [1]}, profile=profile)["rows"][0]
        for profile in ("generic", str(tmp_path / "scouting.safetensors"))
    ]
    assert own["profile"] == "generic"
    assert scouting["ideal_ratio"] > own["ideal_ratio"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("benchmark_pocket_cpu", {"model": "pocket", "lengths": [30, 60, 120, 300, 600], "dtype": "float32",
                                  "threads": 2, "keep_ratios": [1.0, 0.7, 0.5, 0.3, 0.1]}),
        ("benchmark_gpu", {"model": "qwen2_5_omni_3b", "lengths": [300], "dtype": "bfloat16",
                           "attention": ["sdpa", "flash_attention_2"]}),
    ],
)  # fmt: skip
def test_configurations(name: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def record(bench: Any, *arguments: Any) -> None:
        given["bench"] = arguments
        raise KeyboardInterrupt

    checked = command._check
    monkeypatch.setattr(command._Bench, "__init__", record)
    monkeypatch.setattr(command, "_check", lambda axes, **rest: (given.update(axes), checked(axes, **rest)))
    path = CONFIGS / f"{name}.yaml"
    with pytest.raises(KeyboardInterrupt):
        main(["benchmark", "--config", str(path)])
    model, dtype, num_layers, encoder_layers, threads = given.pop("bench")
    given |= {"model": model, "dtype": dtype, "threads": threads}
    assert {key: given[key] for key in expected} == expected
    assert (num_layers, encoder_layers) == (None, None)
    assert model in SHAPES
    # What the comments say to run is a command line that is understood.
    comment = re.sub(r"\\\n#", "", path.read_text())
    for line in re.findall(r"^#   headrouter-pl (.*)$", comment, re.M):
        with pytest.raises(KeyboardInterrupt):
            main(line.replace("configs/", f"{CONFIGS}/").split())
