"""MMAUProDataModule on rows in the benchmark's form."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_trees import MMAU_CATEGORIES, RATE, write_mmau_pro

from headrouter_pl.data import AudioError, MMAUProDataModule
from headrouter_pl.errors import UnknownNameError
from headrouter_pl.tasks import TASKS

PROCESSOR: Any = SimpleNamespace(feature_extractor=SimpleNamespace(sampling_rate=RATE))


def make(root: Path, *tasks: str) -> MMAUProDataModule:
    return MMAUProDataModule(PROCESSOR, root, tasks=list(tasks) or None)


def rewrite(root: Path, **fields: Any) -> None:
    rows = [json.loads(line) for line in (root / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[0].update(fields)
    (root / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.mark.parametrize("form", ["parquet", "jsonl", "json"])
def test_every_category(tmp_path: Path, form: str) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    rows = write_mmau_pro(tmp_path, form)
    records = make(tmp_path).read("validate")
    names = [f"mmau-pro-{category.replace('_', '-')}" for category in MMAU_CATEGORIES]
    assert [record.task for record in records] == [
        *names,
        "mmau-pro-open",
        "mmau-pro-open",
        "mmau-pro-instruction-following",
    ]
    assert [record.answer for record in records[:10]] == ["A", *"BBBBBBBBB"]
    assert [record.key for record in records] == [f"{i:05d}" for i in range(len(rows))]
    assert [record.answer for record in records[10:12]] == ["The dog barks twice", "a dog"]
    assert json.loads(records[12].answer)["kwargs"] == {"N": 3}
    assert [len(record.parts()) for record in records] == [1] * 9 + [2] + [1] * 3
    assert all(len(clip) == RATE // 2 for record in records for clip in record.clips(RATE))
    assert records[0].prompt.endswith("J. word 8\n\nAnswer with the letter of the correct option only "
                                      "(A, B, C, D, E, F, G, H, I, or J).")  # fmt: skip
    assert records[12].prompt == rows[12]["question"]
    assert {TASKS[record.task].family for record in records if "speech" in record.task} == {"semantic"}


def test_categories_by_name(tmp_path: Path) -> None:
    write_mmau_pro(tmp_path, "jsonl")
    records = make(tmp_path, "voice_chat", "mmau-pro-multi").read("test")
    assert [record.task for record in records] == ["mmau-pro-voice-chat", "mmau-pro-multi"]
    with pytest.raises(UnknownNameError, match="'sounds'"):
        make(tmp_path, "sounds")
    rewrite(tmp_path, category="music")
    with pytest.raises(AudioError, match="no question of mmau-pro-speech"):
        make(tmp_path, "spatial_audio", "speech").read("test")


def test_arguments_as_text(tmp_path: Path) -> None:
    write_mmau_pro(tmp_path, "jsonl")
    rewrite(
        tmp_path, category="instruction following", task_identifier="Keyword Frequency",
        kwargs='{"keyword": "dog", "N": 2}',
    )  # fmt: skip
    record = make(tmp_path, "instruction-following").read("test")[0]
    metric = TASKS[record.task].metric()
    metric.update(["dog and Dog", "dogs"], [record.answer] * 2)
    assert metric.compute() == 0.5


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"category": "smells"}, "KeyError.*smells"),
        ({"category": "instruction following", "task_identifier": "Sing"}, "unknown task_identifier 'Sing'"),
        ({"category": "instruction following", "task_identifier": "Start Checker"}, "KeyError.*start_phrase"),
        ({"audio_path": []}, "audio_path is empty"),
        ({"choices": [str(i) for i in range(30)]}, "30 choices"),
    ],
)
def test_errors_name_the_row(tmp_path: Path, fields: dict[str, Any], why: str) -> None:
    write_mmau_pro(tmp_path, "jsonl")
    rewrite(tmp_path, **fields)
    with pytest.raises(AudioError, match=rf"test.jsonl, row 0: .*{why}"):
        make(tmp_path).read("validate")


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"holds none of test.parquet, test.jsonl"):
        make(tmp_path).read("validate")
    (tmp_path / "test.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(AudioError, match=r"line 1 is not JSON"):
        make(tmp_path).read("validate")


def test_an_answer_that_is_no_choice(tmp_path: Path) -> None:
    write_mmau_pro(tmp_path, "jsonl")
    rewrite(tmp_path, answer="a wolf")
    with pytest.warns(UserWarning, match=r"1 of 10 right answers are no option \(00000: "):
        make(tmp_path).read("validate")
