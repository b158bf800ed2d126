"""``headrouter-pl calibrate`` and ``headrouter-pl profile show``, on a tiny model and scenes of noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml
from tiny_pocket import build, make_processor, noise

from headrouter_pl import HeadProfile, calibration
from headrouter_pl.calibration import ProfileCalibrator
from headrouter_pl.cli import calibrate as command
from headrouter_pl.cli import main
from headrouter_pl.cli.pocket import choose_items
from headrouter_pl.cli.profile import format_profile
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule
from headrouter_pl.data.pocket.benchmark import PocketBenchmark, PocketItem
from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.profiles import TYPES
from headrouter_pl.scorers import LinearProbeScorer

torch.set_num_threads(1)

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PocketBenchmark:
    """Four scenes of one or two seconds, three questions each, one a type."""
    items = []
    for number, seconds in enumerate((1, 1, 2, 2)):
        soundfile.write(tmp_path / f"{number}.wav", noise(number, seconds), 16_000, subtype="FLOAT")
        for index, kind in enumerate(TYPES):
            first = 3 * index + number
            key, prompt, answer = f"train/{number}/{kind}", f"w{40 + index} w50", f"w{60 + number} w7"
            items.append(PocketItem(key, f"{number}.wav", seconds, "code", kind, prompt, answer, (), 0.5, ((0.0, 1.0),),
                                    ((first, first + 6),)))  # fmt: skip
    # The span's end is rounded up: past the last token.
    last = items[-1]
    items[-1] = PocketItem(**{**vars(last), "evidence_tokens": ((40, 51),)})
    made = PocketBenchmark(tmp_path, items)
    monkeypatch.setattr(PocketBenchmark, "open", lambda split: made)
    monkeypatch.setattr(command, "load_model", lambda weights, checkpoint, dtype: (build().to(dtype), make_processor()))
    return made


def by_hand(benchmark: PocketBenchmark, **settings: Any) -> HeadProfile:
    """Through the data module, with the encoder in its place."""
    model, processor = build(), make_processor()
    calibrator = ProfileCalibrator(model, **settings)
    for item in benchmark.items:
        record = AudioPrompt(benchmark.folder / item.audio, item.prompt, item.answer, item.key)
        inputs = AudioPromptDataModule(processor).collate_train([record])["inputs"]
        spans = [(first, min(last, round(item.seconds * 25))) for first, last in item.evidence_tokens]
        calibrator.update({"inputs": inputs, "types": [item.type], "evidence": [spans], "keys": [item.key]})
    return calibrator.profile("x")


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "evidence", "fit": "signed", "layer": 3, "layers": [1, 2]}, {"method": "utility", "stretch": 10}],
    ids=str,
)
def test_run(
    questions: PocketBenchmark, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "mine.safetensors"
    main(["calibrate", f"--output={out}", *[f"--{name}={value}" for name, value in settings.items()]])
    profile, wanted = HeadProfile.load(out), by_hand(questions, **settings)
    # Encoder outputs are kept in half precision.
    torch.testing.assert_close(profile.weights, wanted.weights, atol=5e-3, rtol=5e-2)
    torch.testing.assert_close(profile.centroids, wanted.centroids, atol=1e-3, rtol=1e-2)
    assert profile.metadata["samples"] == '{"semantic": 4, "sound": 4, "voice": 4}'
    assert profile.metadata["data"].startswith("Pocket benchmark, train: 12 questions (")
    assert profile.name == "mine"
    printed = capsys.readouterr().out
    assert format_profile(profile) in printed
    assert [path.name for path in out.parent.iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize(
    ("name", "layers", "pool", "smoothing"),
    [
        ("calibrate_pocket", [0, 1, 3], 4, 0),
        ("calibrate_pocket_deep", [0, 2, 3], 4, 0),
        ("calibrate_pocket_one_pass", [0, 1, 2], None, 4),
    ],
)
def test_the_shipped_configs(
    questions: PocketBenchmark, tmp_path: Path, name: str, layers: list[int], pool: int | None, smoothing: int
) -> None:
    out, config = tmp_path / "mine.safetensors", CONFIGS / f"{name}.yaml"
    # The tiny model has four layers, and its scenes are of one and two seconds.
    tiny = [f"--layers={layers}", "--lengths=[1, 2]", "--dtype=float32"]
    main(["calibrate", "--config", str(config), f"--output={out}", *tiny])
    profile = HeadProfile.load(out)
    assert (profile.features, profile.layers) == ("log", tuple(layers))
    assert (profile.pool, profile.smoothing) == (pool, smoothing)
    assert profile.metadata["method"] == "evidence, signed"
    assert set(profile.types) == set(TYPES)
    if pool is None:
        assert yaml.safe_load(config.read_text())["layers"] == layers


def test_families_and_a_choice_of_scenes(questions: PocketBenchmark, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    types = '{"semantic": "semantic", "acoustic": "acoustic"}'
    main(["calibrate", f"--output={out}", f"--types={types}", "--lengths=[2]"])
    profile = HeadProfile.load(out)
    assert profile.types == profile.families == ("semantic", "acoustic")
    assert profile.metadata["samples"] == '{"semantic": 2, "acoustic": 4}'


@pytest.mark.parametrize("method", ["selectivity", "linear_probe"])
@pytest.mark.parametrize(
    "types",
    [
        {"speech": "semantic", "noise": "acoustic"},
        {"semantic": "semantic", "voice": "acoustic"},  # not sound
        {**TYPES, "acoustic": "acoustic"},  # for which no question is left
        {**TYPES, "music": "acoustic"},
    ],
    ids=str,
)
def test_types_that_questions_do_not_have_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, types: dict[str, str], method: str
) -> None:
    monkeypatch.setattr(PocketBenchmark, "open", None)
    with pytest.raises(ConfigurationError, match=f"types must name each type .* got {', '.join(types)}"):
        main(["calibrate", f"--method={method}", f"--types={json.dumps(types)}"])


def test_one_acoustic_type_and_the_rest(questions: PocketBenchmark, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    types = {"semantic": "semantic", "voice": "acoustic", "acoustic": "acoustic"}
    main(["calibrate", f"--output={out}", f"--types={json.dumps(types)}"])
    assert HeadProfile.load(out).metadata["samples"] == '{"semantic": 4, "voice": 4, "acoustic": 4}'


def test_a_killed_run_goes_on(questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.calibrator, "SAVE_SECONDS", 0.0)
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    main(["calibrate", f"--output={whole}"])
    update, seen = ProfileCalibrator.update, []

    def dying(self: ProfileCalibrator, batch: Any, name: str = "") -> None:
        if len(seen) == 5:
            seen.append("")
            raise KeyboardInterrupt
        seen.append(batch["keys"][0])
        update(self, batch, name)

    monkeypatch.setattr(ProfileCalibrator, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        main(["calibrate", f"--output={killed}"])
    assert not killed.exists()
    with pytest.raises(HeadRouterError, match="state of another calibration: other queries"):
        main(["calibrate", f"--output={killed}", "--queries=last"])
    with pytest.raises(HeadRouterError, match="state of another calibration: other data"):
        main(["calibrate", f"--output={killed}", "--lengths=[1]"])
    main(["calibrate", f"--output={killed}"])
    assert [key for key in seen if key] == [item.key for item in choose_items(questions.items, None, None)]
    one, other = HeadProfile.load(whole), HeadProfile.load(killed)
    assert torch.equal(one.weights, other.weights)  # type: ignore[arg-type]
    assert torch.equal(one.centroids, other.centroids)  # type: ignore[arg-type]


def test_a_run_that_cannot_save_is_not_lost(
    questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "mine.safetensors"

    def full(self: HeadProfile, path: Path) -> None:
        raise HeadRouterError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(HeadProfile, "save", full)
        with pytest.raises(HeadRouterError, match="No space"):
            main(["calibrate", f"--output={out}"])
    monkeypatch.setattr(ProfileCalibrator, "update", None)  # nothing is measured again
    with pytest.warns(UserWarning, match="holds all 12 batches already: none was measured"):
        main(["calibrate", f"--output={out}"])
    assert HeadProfile.load(out).metadata["samples"] == '{"semantic": 4, "sound": 4, "voice": 4}'
    assert [path.name for path in out.parent.iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize("method", ["selectivity", "linear_probe"])
def test_an_output_that_cannot_be_is_refused_at_once(
    questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(PocketBenchmark, "open", None)  # nothing is asked for
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for out, message in ((tmp_path / "folder", "is a folder"), (tmp_path / "file" / "x", "cannot be written")):
        with pytest.raises(ConfigurationError, match=f"{out} {message}"):
            main(["calibrate", f"--method={method}", f"--output={out}"])


def test_each_audio_is_encoded_once_and_the_encoder_put_back(questions: PocketBenchmark) -> None:
    model, processor = build(), make_processor()
    encoder = model.get_submodule("model.audio_tower") if hasattr(model.model, "audio_tower") else model.audio_tower
    calls: list[int] = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    batches = command._Questions(model, processor, questions.folder, questions.items, TYPES)
    calibration.calibrate(model, batches, progress=False)
    assert len(calls) == 4
    assert encoder not in list(model.modules())
    batches.close()
    assert encoder in list(model.modules())


def test_refused(questions: PocketBenchmark, tmp_path: Path) -> None:
    out = f"--output={tmp_path / 'x.safetensors'}"
    with pytest.raises(ConfigurationError, match="not on 'test'"):
        main(["calibrate", out, "--split=test"])
    with pytest.raises(ConfigurationError, match="Did you mean 'utility'"):
        main(["calibrate", out, "--method=utilty"])
    with pytest.raises(HeadRouterError, match=r"no questions about scenes of \[300\] s; there are"):
        main(["calibrate", out, "--lengths=[300]"])


# profile show


def example(**changes: Any) -> HeadProfile:
    weights = torch.zeros(2, 8)
    weights[0, 5], weights[0, 1] = 0.75, 0.25
    weights[1, 2] = 1.0
    options = {
        "weights": weights,
        "centroids": torch.full((2, 8), 0.125),
        "layers": (1, 3),
        "metadata": {"method": "m"},
    }
    return HeadProfile("mine", ("semantic", "sound"), ("semantic", "acoustic"), **{**options, **changes})


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, image = tmp_path / "mine.safetensors", tmp_path / "new" / "mine.png"
    example().save(path)
    main(["profile", "show", str(path), "--top=3", "--output", str(image)])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.split("\n") if line.startswith("|")]
    assert rows[0] == ["layer", "head", "semantic", "sound", "selectivity, semantic", "selectivity, sound"]
    assert rows[2:] == [
        ["1", "2", "0.000", "1.000", "0.125", "0.125"],
        ["3", "1", "0.750", "0.000", "0.125", "0.125"],
        ["1", "1", "0.250", "0.000", "0.125", "0.125"],
    ]
    assert "and 5 more heads" in printed
    assert "semantic 1.6, sound 1.0" in printed
    assert "method: m" in printed
    assert image.read_bytes().startswith(b"\x89PNG")


def test_show_signed_weights_and_a_profile_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.safetensors"
    example(weights=-example().weights, features="log", layers=None, centroids=None).save(path)  # type: ignore[operator]
    main(["profile", "show", str(path), "--output", str(tmp_path / "a.png")])
    printed = capsys.readouterr().out
    assert "weights on log, layers right below the prune layer" in printed
    assert "-0.750" in printed
    main(["profile", "show", "generic"])
    assert "It weighs all heads alike." in capsys.readouterr().out
    with pytest.raises(HeadRouterError, match="no weights to draw"):
        main(["profile", "show", "sharp", "--output", str(tmp_path / "b.png")])


def test_show_refuses_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for option, value, message in (
        ("--top", "0", "top must be at least 1, got 0"),
        ("--top", "-1", "top must be at least 1, got -1"),
        ("--output", "heads.foo", r"heads\.foo: the heads are drawn as a PNG; name a file that ends in \.png"),
        ("--output", str(tmp_path / "folder.png"), "is a folder"),
        ("--output", str(tmp_path / "file" / "x.png"), r"x\.png cannot be written"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            main(["profile", "show", "pocket", f"{option}={value}"])
    assert not capsys.readouterr().out


def test_linear_probe(questions: PocketBenchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "probe.safetensors"
    main(["calibrate", "--method=linear_probe", f"--output={out}"])
    probe = LinearProbeScorer.load(out)
    assert probe.profile.types == tuple(TYPES)
    assert probe.metadata["samples"] == "semantic 4, sound 4, voice 4"
    assert probe.metadata["samples"] in capsys.readouterr().out


@pytest.mark.parametrize(
    "setting",
    ["fit=signed", "layer=3", "layers=[1]", "queries=last", "rotary=true", "pool=4", "smoothing=2", "stretch=5"],
)
def test_a_linear_probe_refuses_what_it_would_ignore(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setattr(PocketBenchmark, "open", None)
    name = setting.partition("=")[0]
    with pytest.raises(ConfigurationError, match=f"^{name} would be ignored: a linear probe reads embeddings alone"):
        main(["calibrate", "--method=linear_probe", f"--{setting}"])


def test_a_linear_probe_needs_a_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PocketBenchmark, "open", None)
    with pytest.raises(ConfigurationError, match=r"ridge must be positive, got 0\.0"):
        main(["calibrate", "--method=linear_probe", "--ridge=0"])
