"""The command line, in this process."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AudioFlamingo3Processor, PreTrainedTokenizerFast, WhisperFeatureExtractor

import headrouter_pl
from headrouter_pl import AudioTokenPruner, LALMModule
from headrouter_pl.cli import COMMANDS, TRAINER_COMMANDS, console, main
from headrouter_pl.data import AudioPromptDataModule, read_records
from headrouter_pl.data.pocket.benchmark import PocketBenchmark
from headrouter_pl.errors import UnknownNameError

torch.set_num_threads(1)

CONFIG = Path(__file__).parents[2] / "configs" / "validate_jsonl.yaml"
SECONDS = (1.0, 0.7, 1.5)  # 25 tokens a second
RATIO = 0.3
NEW_TOKENS = 5
TEMPLATE = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>' }}
{%- for item in message['content'] -%}{{ '<sound>' if item['type'] == 'audio' else item['text'] }}{%- endfor -%}
{{ '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AudioFlamingo3 with a stock processor whose tokens are characters, in windows of one second."""
    folder = tmp_path_factory.mktemp("model")
    family = tiny.FAMILIES["audioflamingo3"]
    config = family.config(6)
    config.audio_config.max_source_positions = 50
    model = tiny._cls(family.cls)._from_config(config)
    tiny._randomise(model, 0)
    model.save_pretrained(folder)

    special = {"<pad>": 0, "<|user|>": 1, "<|assistant|>": 2, "<|end|>": 3, "?": 4, "<sound>": tiny.AUDIO_ID}
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 "
    letters += "àáâãäåæçèéêëìíîïðñòóôõöøù"  # what the model can say
    vocabulary = special | {letter: tiny.TEXT_LOW + i for i, letter in enumerate(letters)}
    assert max(set(vocabulary.values()) - {tiny.AUDIO_ID}) == tiny.TEXT_HIGH - 1
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="?", eos_token="<|end|>",
        additional_special_tokens=["<sound>", "<|user|>", "<|assistant|>"],
    )  # fmt: skip
    features = WhisperFeatureExtractor(feature_size=tiny.MELS, chunk_length=1)
    AudioFlamingo3Processor(features, tokenizer, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def records(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of recordings whose right answers are what the pruned model says."""
    soundfile = pytest.importorskip("soundfile")
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for index, seconds in enumerate(SECONDS):
        soundfile.write(folder / f"{index}.wav", rng.normal(scale=0.1, size=int(seconds * 16_000)), 16_000)
        rows.append({"audio": f"{index}.wav", "prompt": "Transcribe the speech"})
    path = folder / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    module = LALMModule(str(model_folder), generate={"max_new_tokens": NEW_TOKENS}, task="question").eval()
    data = AudioPromptDataModule(str(model_folder))
    with AudioTokenPruner(RATIO, tokenizer=module.processor)(module) as report:
        for row, record in zip(rows, read_records(path), strict=True):
            (row["answer"],) = module.answer(data.collate([record])["inputs"])
    assert [sample.seen for sample in report.samples] == [25 * seconds // 1 for seconds in SECONDS]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # results go to outputs/ of the working folder


def validate(model: Path, records: Path, out: Path, *options: str) -> dict[str, float]:
    main([
        "validate", "--config", str(CONFIG),
        "--model.model", str(model), "--model.task", "question",
        "--model.generate", f"{{max_new_tokens: {NEW_TOKENS}}}",
        "--data.processor", str(model), "--data.validate", str(records),
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        "--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(out),
        "--trainer.logger.name", "", "--trainer.logger.version", "",
        *options,
    ])  # fmt: skip
    with (out / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    return {name: float(value) for name, value in row.items()}


class TestTrainerCommands:
    def test_validate_from_the_shipped_config(self, model_folder: Path, records: Path, tmp_path: Path) -> None:
        ratio = ("--trainer.callbacks.init_args.keep_ratio", str(RATIO))
        metrics = validate(model_folder, records, tmp_path, *ratio)
        assert metrics["val/question"] == 1
        assert metrics["headrouter/audio_tokens_seen"] == sum(25 * seconds // 1 for seconds in SECONDS)
        assert metrics["headrouter/audio_tokens_kept"] == round(RATIO * 25) + round(RATIO * 17) + round(RATIO * 37)
        assert metrics["headrouter/samples"] == 3

    def test_without_the_callback_the_answers_differ(self, model_folder: Path, records: Path, tmp_path: Path) -> None:
        metrics = validate(model_folder, records, tmp_path, "--trainer.callbacks", "null")
        assert metrics["val/question"] < 1
        assert not any(name.startswith("headrouter/") for name in metrics)

    def test_lora_fit_from_a_config(self, model_folder: Path, records: Path, tmp_path: Path) -> None:
        lora = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}
        config = {
            "trainer": {
                "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False,
                "default_root_dir": str(tmp_path), "enable_model_summary": False,
            },
            "model": {
                "class_path": "headrouter_pl.LALMModule",
                "init_args": {"model": str(model_folder), "lora": lora, "learning_rate": 0.01},
            },
            "data": {
                "class_path": "headrouter_pl.data.AudioPromptDataModule",
                "init_args": {"processor": str(model_folder), "train": str(records), "batch_size": 3},
            },
        }  # fmt: skip
        (tmp_path / "fit.yaml").write_text(json.dumps(config))  # JSON is YAML
        main(["fit", "--config", str(tmp_path / "fit.yaml")])
        (checkpoint,) = tmp_path.rglob("*.ckpt")
        state = torch.load(checkpoint, weights_only=True)
        assert state["global_step"] == 1
        trained = [
            value for name, value in state["state_dict"].items() if "language_model" in name and "lora_B" in name
        ]
        assert len(trained) == 2 * 6
        assert all(value.any() for value in trained)  # moved from zero

    def test_a_wrong_setting_is_named(
        self, model_folder: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            validate(model_folder, records, tmp_path, "--trainer.callbacks.init_args.keep_rato", "0.3")
        assert caught.value.code == 2
        assert "keep_rato" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            (["--trainer.callbacks.init_args.keep_ratio", "3"], r"keep_ratio must be in \(0, 1\], got 3"),
            (["--model.task", "questoin"], "Unknown task 'questoin'"),
            (
                ["--trainer.callbacks.init_args.scorer", '{"class_path": "ScoutScorer", "init_args": {"pool": 0}}'],
                "pool must be",
            ),
            (["--data.task", "soundd"], "Unknown task 'soundd'"),
        ],
    )
    def test_what_a_constructor_refuses_is_a_line(
        self,
        model_folder: Path,
        records: Path,
        monkeypatch: pytest.MonkeyPatch,
        setting: list[str],
        message: str,
    ) -> None:
        """jsonargparse wraps what the callback, the module and the data module raise."""
        command = ["headrouter-pl", "validate", "--config", str(CONFIG), "--model.model", str(model_folder),
                   "--data.processor", str(model_folder), "--data.validate", str(records)]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [*command, *setting])
        with pytest.raises(SystemExit) as caught:
            console()
        assert re.match(f"headrouter-pl: .*{message}", str(caught.value.code))


class TestCommands:
    def test_help_lists_them_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["--help"])
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: headrouter-pl")
        assert all(name in out for name in (*COMMANDS, *TRAINER_COMMANDS))
        assert "Cross-validates the prompt router" in out

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_of_each(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        option = {
            "router": "--folds",
            "data": "pocket",
            "demo": "--questions",
            "benchmark": "--runs",
            "calibrate": "--stretch",
            "compare": "--keep_ratios",
            "evaluate": "--checkpoint",
            "gallery": "--title",
            "profile": "show",
        }[command]
        assert option in capsys.readouterr().out

    def test_version_and_arguments_of_the_process(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["headrouter-pl", "--version"])
        main()
        assert capsys.readouterr().out.strip() == headrouter_pl.__version__

    def test_an_error_of_ours_is_a_line_on_the_console(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["headrouter-pl", "profile", "show", "pocked"])
        with pytest.raises(SystemExit, match=r"^headrouter-pl: Unknown profile 'pocked'"):
            console()

    @pytest.mark.parametrize("args", [["rooter"], ["router", "--fold", "x"], ["router", "--folds", "two"]])
    def test_mistakes_exit_with_two(self, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(args)
        assert caught.value.code == 2
        assert args[-1] in capsys.readouterr().err

    def test_router(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["router", "--folds", "2"])
        out = capsys.readouterr().out
        assert "2-fold cross-validation, n = " in out
        assert "held-out prompts, n = " in out
        accuracies = [float(line.split()[1]) for line in out.splitlines() if line.startswith("family  ")]
        assert len(accuracies) == 2
        assert min(accuracies) > 0.8


@pytest.mark.parametrize(
    "command",
    [
        ["benchmark"],
        ["calibrate"],
        ["compare", '[{"name": "a", "scorer": "stride"}]'],
        ["evaluate"],
        ["gallery", '[{"name": "a", "scorer": "stride"}]'],
    ],
    ids=lambda command: command[0],
)
def test_an_unknown_dtype_is_refused_at_once(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PocketBenchmark, "open", None)
    with pytest.raises(
        UnknownNameError, match=r"dtype 'bf16'\. Did you mean 'bfloat16'\? Known dtypes: bfloat16, float16"
    ):
        main([*command, "--dtype=bf16"])
    assert not list(tmp_path.iterdir())
