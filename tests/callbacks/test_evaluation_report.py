"""EvaluationReport: tables and files of ten tasks in one run, alone and in two processes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import soundfile
import tiny_pocket
import torch
from benchmark_trees import noise, write_audiomarathon
from torch.utils.data import DataLoader
from two_processes import run_two

from headrouter_pl import HeadRouterCallback, LALMModule
from headrouter_pl.callbacks import EvaluationReport
from headrouter_pl.data import AudioMarathonDataModule, AudioPrompt, AudioPromptDataModule, demo_speech
from headrouter_pl.data.audiomarathon import LAYOUTS
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.models.pocket import pocket_folder

torch.set_num_threads(1)

NAMES = [f"audiomarathon-{name}" for name in LAYOUTS]


def make() -> LALMModule:
    return LALMModule(tiny_pocket.build(), tiny_pocket.make_processor(), generate={"max_new_tokens": 4})


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **{**settings, **options})


def data(root: Path, **options: Any) -> AudioMarathonDataModule:
    return AudioMarathonDataModule(tiny_pocket.make_processor(), root, **options)


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "results.json").read_text(encoding="utf-8")), [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("AudioMarathon")
    write_audiomarathon(folder, noise(1.0))
    return folder


@pytest.fixture(scope="module")
def unpruned(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpruned")
    trainer(EvaluationReport(folder)).validate(make(), datamodule=data(root), verbose=False)
    return folder


class TestTenTasks:
    def test_files_and_logged_values(self, root: Path, unpruned: Path) -> None:
        results, samples = read(unpruned)
        assert list(results["tasks"]) == NAMES
        assert {result["n"] for result in results["tasks"].values()} == {2}
        assert [sample["key"] for sample in samples] == sorted(
            record.key for record in data(root).read("validate")
        )  # by task and key, whose names sort alike
        assert results["failures"] == []
        assert results["headrouter"] == {}
        assert sorted(path.name for path in unpruned.iterdir()) == ["results.json", "samples.jsonl"]
        (logged,) = trainer().validate(make(), datamodule=data(root), verbose=False)
        assert logged == pytest.approx(
            {f"val/{name}": results["tasks"][name]["value"] for name in NAMES} | {"val/average": results["average"]}
        )

    def test_batches_do_not_change_what_is_said(self, root: Path, unpruned: Path, tmp_path: Path) -> None:
        report = EvaluationReport(tmp_path, unpruned / "results.json")
        trainer(report).test(make(), datamodule=data(root, batch_size=3), verbose=False)
        assert read(tmp_path)[1] == read(unpruned)[1]
        assert read(tmp_path)[0]["average"] == read(unpruned)[0]["average"]
        assert report.results["agreement"]["average"] == 100

    def test_table_with_pruning_and_an_unpruned_run(
        self, root: Path, unpruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = EvaluationReport(tmp_path, unpruned / "results.json")
        trainer(HeadRouterCallback(0.3), report).validate(make(), datamodule=data(root), verbose=False)
        out = capsys.readouterr().out
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
        assert rows[0][:4] == ["task", "type", "n", "score"]
        assert rows[0][-2:] == ["% of unpruned", "% same answers"]
        assert [row[0] for row in rows[2:]] == [*NAMES, "semantic", "acoustic", "average", "average by sample"]
        results = read(tmp_path)[0]
        assert 0.2 < results["headrouter"]["keep_ratio"] < 0.4  # the ratio that was applied
        assert results["percent_of_unpruned"] == report.results["percent_of_unpruned"]
        before, now = ({row["key"]: row for row in read(folder)[1]} for folder in (unpruned, tmp_path))
        for name in NAMES:
            same = [
                (row["answer"] or row["text"]) == (now[key]["answer"] or now[key]["text"])
                for key, row in before.items() if row["task"] == name
            ]  # fmt: skip
            assert results["agreement"]["tasks"][name] == 100 * sum(same) / len(same)
        assert results["agreement"]["average"] == sum(results["agreement"]["tasks"].values()) / len(NAMES) < 100
        # The transcripts of a random model are all wrong, whatever is pruned.
        shown = {row[0]: row for row in rows[2:]}
        asr = results["tasks"]["audiomarathon-asr"]
        assert shown["audiomarathon-asr"][3:5] == [f"{asr['score']:.1f}", f"MeanWER {asr['value']:.3f}"]

    def test_known_answers_score_in_full(self, tmp_path: Path) -> None:
        made = make()
        records = [AudioPrompt(tiny_pocket.noise(i, 1), "w40 w41", key=str(i), task="question") for i in range(3)]
        said = [
            row["text"]
            for batch in trainer().predict(made, AudioPromptDataModule(made.processor, predict=records))  # type: ignore
            for row in batch
        ]
        known = [AudioPrompt(r.audio, r.prompt, text, r.key, r.task) for r, text in zip(records, said, strict=True)]
        known[1] = AudioPrompt(known[1].audio, known[1].prompt, "other", "1", "question")
        report = EvaluationReport(tmp_path)
        trainer(report).validate(made, AudioPromptDataModule(made.processor, validate=known), verbose=False)
        assert report.results["tasks"]["question"]["score"] == pytest.approx(200 / 3)
        assert [row["score"] for row in read(tmp_path)[1]] == [100, 0, 100]


class TestFailures:
    def test_count_as_wrong_and_are_listed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_audiomarathon(tmp_path / "data", noise(1.0))
        places = sorted((tmp_path / "data").glob("subsetSLUE/merged/*.wav"))
        places[0].unlink()
        soundfile.write(places[1], [0.0] * 100, 16_000)
        (tmp_path / "data" / "subsetVESUS" / "1" / "angry.wav").write_bytes(b"no sound")
        report = EvaluationReport(tmp_path / "out")
        module = data(tmp_path / "data", tasks=["ser", "er"], on_bad_audio="report")
        trainer(HeadRouterCallback(0.5), report).validate(make(), datamodule=module, verbose=False)
        results, samples = read(tmp_path / "out")
        assert [results["tasks"][name]["failed"] for name in ("audiomarathon-er", "audiomarathon-ser")] == [1, 2]
        assert [results["tasks"][name]["n"] for name in ("audiomarathon-er", "audiomarathon-ser")] == [2, 2]
        assert results["tasks"]["audiomarathon-ser"]["score"] == 0
        assert [failure["key"] for failure in results["failures"]] == ["er/00001", "ser/00000", "ser/00001"]
        assert [sample["key"] for sample in samples if sample["failure"]] == ["er/00001", "ser/00000", "ser/00001"]
        assert "counted as wrong: ser/00001: " in capsys.readouterr().out
        found = trainer().predict(make(), module)
        assert found is not None
        assert [row.get("failure", "")[:13] for batch in found for row in batch] == [
            "no audio file", str(places[1])[:13], "", str(tmp_path)[:13],
        ]  # fmt: skip


def test_what_was_said_before_a_crash_is_on_disk(root: Path, unpruned: Path, tmp_path: Path) -> None:
    class Crash(L.Callback):
        def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if index == 3:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        trainer(EvaluationReport(tmp_path), Crash()).validate(make(), datamodule=data(root), verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.0.part.jsonl"]
    lines = (tmp_path / "samples.0.part.jsonl").read_text(encoding="utf-8").splitlines()
    known = {row["key"]: row for row in read(unpruned)[1]}
    assert [json.loads(line) for line in lines] == [
        known[key] for key in ("ser/00000", "ser/00001", "scr/00000", "scr/00001")
    ]


class TestRefusals:
    def test_unpruned_results(self, unpruned: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"would replace .*results.json"):
            EvaluationReport(unpruned, unpruned / "results.json")
        with pytest.raises(ConfigurationError, match=r"gone.json' holds no results"):
            EvaluationReport(tmp_path, tmp_path / "gone.json")
        (tmp_path / "list.json").write_text("[]", encoding="utf-8")
        with pytest.raises(ConfigurationError, match=r"list.json' holds no results"):
            EvaluationReport(tmp_path, tmp_path / "list.json")

    def test_unpruned_samples(self, root: Path, unpruned: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        shutil.copy(unpruned / "results.json", other)
        report = EvaluationReport(tmp_path / "out", other / "results.json")  # alone, it is enough for percentages
        trainer(report).validate(make(), datamodule=data(root), verbose=False)
        assert "percent_of_unpruned" in report.results
        assert "agreement" not in report.results
        text = (unpruned / "samples.jsonl").read_text(encoding="utf-8")
        (other / "samples.jsonl").write_text(text.replace("ser/00001", "ser/00007"), encoding="utf-8")
        report = EvaluationReport(tmp_path / "out", other / "results.json")
        with pytest.raises(ConfigurationError, match=r"2 are in one of the runs alone, the first is 'ser/00001'"):
            trainer(report).validate(make(), datamodule=data(root), verbose=False)
        said = text.replace('"text": "', '"text": "\u2028', 1)  # no end of a line in JSON
        (other / "samples.jsonl").write_text(said, encoding="utf-8")
        EvaluationReport(tmp_path / "out", other / "results.json")
        (other / "samples.jsonl").write_text(text[:-20], encoding="utf-8")
        with pytest.raises(ConfigurationError, match=r"samples.jsonl does not hold the samples"):
            EvaluationReport(tmp_path / "out", other / "results.json")

    def test_samples_without_keys(self, tmp_path: Path) -> None:
        made = make()
        records = [AudioPrompt(tiny_pocket.noise(i, 1), "w40 w41", "w9", task="question") for i in range(3)]
        module = AudioPromptDataModule(made.processor, validate=records)
        trainer(EvaluationReport(tmp_path / "before")).validate(made, module, verbose=False)
        report = EvaluationReport(tmp_path / "now", tmp_path / "before/results.json")
        with pytest.warns(UserWarning, match="Samples without keys"):
            trainer(report).validate(made, module, verbose=False)
        assert "agreement" not in report.results

    def test_another_number_of_samples(self, root: Path, unpruned: Path, tmp_path: Path) -> None:
        report = EvaluationReport(tmp_path, unpruned / "results.json")
        with pytest.raises(ConfigurationError, match=r"is of other samples \(audiomarathon-er: 2 samples, here 1"):
            trainer(report).validate(make(), datamodule=data(root, tasks=["er"], samples_per_task=1), verbose=False)
        # What was said is on disk all the same.
        assert len(read(tmp_path)[1]) == 1

    def test_a_module_whose_steps_return_no_samples(self, tmp_path: Path) -> None:
        class Other(L.LightningModule):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                return None

        with pytest.raises(ConfigurationError, match=r"steps that return 'samples'"):
            trainer(EvaluationReport(tmp_path)).validate(Other(), DataLoader([1]), verbose=False)


DDP = """
import json, sys, warnings
sys.path[:0] = PATH
from pathlib import Path
from test_evaluation_report import EvaluationReport, HeadRouterCallback, data, make, trainer

root = Path("root.txt").read_text()
report = EvaluationReport("out", Path(root).parent / "alone" / "results.json")
runner = trainer(HeadRouterCallback(0.5), report, devices=2, strategy="ddp")
module = data(root, tasks=["ser", "asr", "sgr", "sar"], on_bad_audio="report", batch_size=2)
(logged,) = runner.validate(make(), datamodule=module, verbose=False)
found = {"logged": logged, "results": report.results}
Path(f"{runner.global_rank}.json").write_text(json.dumps(found))
"""


def test_two_processes_score_like_one(tmp_path: Path) -> None:
    root, options = (
        tmp_path / "data",
        {"tasks": ["ser", "asr", "sgr", "sar"], "on_bad_audio": "report", "batch_size": 2},
    )
    write_audiomarathon(root, noise(1.0))
    next(root.glob("subsetSLUE/merged/1.wav")).unlink()
    # An odd number of samples: the sampler gives one of them to both processes.
    next(root.glob("**/61-70968-0010.flac")).unlink()
    report = EvaluationReport(tmp_path / "alone")
    (alone,) = trainer(HeadRouterCallback(0.5), report).validate(
        make(), datamodule=data(root, **options), verbose=False
    )
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "root.txt").write_text(str(root), encoding="utf-8")
    first, second = run_two(DDP, __file__, folder)
    assert first == second
    own = {name: value for name, value in alone.items() if name.startswith("val/")}
    assert len(own) == 5
    assert {name: first["logged"][name] for name in own} == pytest.approx(own)
    ((one, lines), (both, both_lines)) = read(tmp_path / "alone"), read(folder / "out")
    assert len(lines) == 7
    assert both_lines == lines
    for name in ("tasks", "types", "families", "average", "average_by_sample", "failures"):
        assert both[name] == one[name]
    assert both["percent_of_unpruned"] == {"tasks": {}, "families": {}, "average": None}  # of scores of 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["results.json", "samples.jsonl"]


@pytest.mark.pocket
@pytest.mark.skipif(
    not (pocket_folder() / "pocket.json").is_file() and os.environ.get("HEADROUTER_POCKET_TESTS") != "1",
    reason=f"no pocket model at {pocket_folder()}",
)
def test_a_minute_of_recorded_speech_through_the_pocket_model(tmp_path: Path) -> None:
    speech, _ = demo_speech(84)
    turns = iter(range(100))
    write_audiomarathon(tmp_path / "data", lambda: np.roll(speech, 100_000 * next(turns))[: 60 * 16_000])
    report = EvaluationReport(tmp_path / "out")
    module = LALMModule("pocket", generate={"max_new_tokens": 3})
    data = AudioMarathonDataModule("pocket", tmp_path / "data", tasks=["scr", "mc"], samples_per_task=1)
    trainer(HeadRouterCallback(0.5), report).validate(module, datamodule=data, verbose=False)
    assert report.results["headrouter"]["audio_tokens_seen"] == 2 * 1500  # 25 a second
    assert report.results["headrouter"]["keep_ratio"] == 0.5
    assert [result["n"] for result in report.results["tasks"].values()] == [1, 1]
