"""AudioMarathonDataModule on a tree in the benchmark's layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from benchmark_trees import RATE, write_audiomarathon

from headrouter_pl.data import AudioError, AudioMarathonDataModule
from headrouter_pl.data.audiomarathon import LAYOUTS
from headrouter_pl.errors import ConfigurationError, UnknownNameError
from headrouter_pl.routers import PromptRouter
from headrouter_pl.tasks import TASKS

PROCESSOR: Any = SimpleNamespace(feature_extractor=SimpleNamespace(sampling_rate=RATE))
LISTS = {
    "ser": "subsetSLUE/merged_audio_data.json",
    "scr": "subsetrace_audio/race_benchmark.json",
    "sed": "subsetDESED/DESED_dataset/concatenated_audio/desed_sound_event_detection_task.json",
    "mc": "subsetGTZAN/concatenated_audio/music_genre_classification_meta.json",
    "asc": "subsetTAU/concatenated_resampled/acoustic_scene_task_meta.json",
    "er": "subsetVESUS/audio_emotion_dataset.json",
    "sgr": "subsetVoxCeleb/concatenated_audio/gender_id_task_meta.json",
    "sar": "subsetVoxCeleb_age/concatenated_audio/age_classification_task_meta.json",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    root = tmp_path_factory.mktemp("AudioMarathon")
    return root, write_audiomarathon(root)


@pytest.fixture
def root(tree: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tree[0], tmp_path / "copy"))


def make(root: Path, *tasks: str, **options: Any) -> AudioMarathonDataModule:
    return AudioMarathonDataModule(PROCESSOR, root, tasks=list(tasks) or None, **options)


def change(path: Path, /, **fields: Any) -> None:
    rows = json.loads(path.read_text(encoding="utf-8"))
    (rows["tasks"] if isinstance(rows, dict) else rows)[0].update(fields)
    path.write_text(json.dumps(rows), encoding="utf-8")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_task(tree: tuple[Path, dict[str, list[str]]], name: str) -> None:
    root, answers = tree
    records = make(root, name).read("validate")
    task = TASKS[f"audiomarathon-{name}"]
    assert [record.task for record in records] == [task.name] * 2
    assert [task.parse(record.answer, record.options) for record in records] == answers[name]
    for record in records:
        (path,) = record.parts()
        assert len(record.clips(RATE)[0]) == RATE // 2, path
        for option in record.options if name not in ("sd", "sgr") else ():
            assert option in record.prompt  # the options, in their order
        positions = [record.prompt.find(option) for option in record.options]
        assert positions == sorted(positions) or name in ("sd", "sgr")
    assert len({record.key for record in records}) == 2


def test_all_ten_in_one_run(tree: tuple[Path, dict[str, list[str]]]) -> None:
    records = make(tree[0]).read("validate")
    assert [record.task for record in records[::2]] == [f"audiomarathon-{name}" for name in LAYOUTS]
    assert len({record.key for record in records}) == len(records) == 20
    families = [TASKS[record.task].family for record in records[::2]]
    assert families == ["semantic"] * 3 + ["acoustic"] * 7


def test_a_prompt_asks_for_a_letter(tree: tuple[Path, dict[str, list[str]]]) -> None:
    prompt = make(tree[0], "sed").read("test")[0].prompt
    assert prompt.endswith(
        "\n\nWhich sound is heard?\nA. Dog\nB. Running water\nC. Speech\nD. Alarm bell ringing\n\n"
        "Answer with the letter of the correct option only (A, B, C, or D)."
    )
    assert "A) Elderly (76+)\nB) Senior" in make(tree[0], "sar").read("test")[0].prompt
    own = make(tree[0], "SED", "audiomarathon-mc", prompts={"sed": "{question} {letters}?"}).read("test")
    assert own[0].prompt == "Which sound is heard? A, B, C, or D?"
    assert "blues" in own[2].prompt


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_prompt_router_knows_its_type(tree: tuple[Path, dict[str, list[str]]], name: str) -> None:
    record = make(tree[0], name).read("test")[0]
    router = PromptRouter.default()
    chances = dict(zip(router.types_, router.predict_type_proba([record.prompt])[0], strict=True))
    assert chances[TASKS[record.task].type] > 0.5


def test_some_samples_are_spread_over_the_task(tree: tuple[Path, dict[str, list[str]]]) -> None:
    records = make(tree[0], samples_per_task=1).read("predict")
    assert [record.key for record in records[:2]] == ["ser/00000", "scr/00000"]
    assert len(records) == 10


class TestRefusals:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"gone"):
            make(tmp_path / "gone")

    def test_unknown_and_repeated_tasks(self, tree: tuple[Path, dict[str, list[str]]]) -> None:
        with pytest.raises(UnknownNameError, match=r"'sett'.*Did you mean"):
            make(tree[0], "sett")
        with pytest.raises(ConfigurationError, match=r"each once"):
            make(tree[0], "ser", "SER")
        with pytest.raises(UnknownNameError):
            make(tree[0], prompts={"asl": "?"})

    def test_nothing_to_fit_on(self, tree: tuple[Path, dict[str, list[str]]]) -> None:
        with pytest.raises(ConfigurationError, match=r"for evaluation"):
            make(tree[0]).train_dataloader()

    @pytest.mark.parametrize("name", LISTS)
    def test_a_missing_list_is_named(self, root: Path, name: str) -> None:
        (root / LISTS[name]).unlink()
        with pytest.raises(AudioError, match=rf"audiomarathon-{name} needs {Path(LISTS[name]).name}, found none"):
            make(root).read("validate")
        others = [other for other in LAYOUTS if other != name]
        assert len(make(root, *others).read("validate")) == 18

    def test_two_lists_are_not_chosen_between(self, root: Path) -> None:
        shutil.copytree(root / "subsetSLUE", root / "again")
        with pytest.raises(AudioError, match=r"found several: .*again.*merged_audio_data.json"):
            make(root, "ser").read("validate")

    def test_real_without_fake(self, root: Path) -> None:
        shutil.rmtree(root / "subsetHAD" / "concatenated_audio" / "fake")
        with pytest.raises(AudioError, match=r"sd needs real/ and fake/, found none"):
            make(root, "sd").read("validate")

    def test_no_transcript(self, root: Path) -> None:
        next(root.glob("**/*.trans.txt")).unlink()
        with pytest.raises(
            AudioError, match=r"0010.flac has no transcript: neither 61-70968-0010.txt nor a line in 61-"
        ):
            make(root, "asr").read("validate")

    @pytest.mark.parametrize("name", LISTS)
    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"path": None, "audio_path": None}, "KeyError.*path"),
            ({"answer_gt": None, "answer": None}, "KeyError.*answer"),
        ],
    )
    def test_a_field_is_missing(self, root: Path, name: str, fields: dict[str, Any], why: str) -> None:
        change(root / LISTS[name], **fields)
        with pytest.raises(AudioError, match=rf"{Path(LISTS[name]).name}, question 0: {why}.*its fields are"):
            make(root, name).read("validate")

    def test_options_of_another_kind(self, root: Path) -> None:
        change(root / LISTS["sed"], choices={"1": "Dog", "2": "Cat"})
        with pytest.raises(AudioError, match=r"question 0.*options are named"):
            make(root, "sed").read("validate")
        for options in (["alone"], "alone"):
            change(root / LISTS["scr"], options=options)
            with pytest.raises(AudioError, match=r"question 0.*alone"):
                make(root, "scr").read("validate")

    def test_not_json(self, root: Path) -> None:
        (root / LISTS["er"]).write_text("[{", encoding="utf-8")
        with pytest.raises(AudioError, match=r"audio_emotion_dataset.json cannot be read as JSON"):
            make(root, "er").read("validate")
        (root / LISTS["er"]).write_text('{"rows": []}', encoding="utf-8")
        with pytest.raises(AudioError, match=r"must hold a list of questions"):
            make(root, "er").read("validate")

    def test_an_answer_that_is_no_option_is_told_and_wrong(self, root: Path) -> None:
        change(root / LISTS["asc"], answer_gt="Beach")
        with pytest.warns(UserWarning, match=r"1 of 2 right answers are no option \(asc/00000: the answer 'Beach'"):
            first, _ = make(root, "asc").read("validate")
        assert first.answer == "Beach"
        change(root / LISTS["asc"], answer_gt="E")
        with pytest.warns(UserWarning, match=r"'E' is neither a letter nor"):
            make(root, "asc").read("validate")

    def test_most_answers_are_no_option(self, root: Path) -> None:
        path = root / LISTS["asc"]
        rows = [{**row, "answer_gt": "Beach"} for row in json.loads(path.read_text(encoding="utf-8"))]
        path.write_text(json.dumps(rows), encoding="utf-8")
        with pytest.raises(AudioError, match=r"2 of 2 right answers are no option.*layout"):
            make(root, "asc").read("validate")

    def test_missing_audio_is_told_at_once(self, root: Path) -> None:
        shutil.rmtree(root / "subsetVoxCeleb" / "concatenated_audio" / "wav")
        with pytest.raises(
            AudioError, match=r"no audio file at .*concatenated_audio.id0.wav.*\(2 of 2 files\).*report"
        ):
            make(root, "sgr").val_dataloader()
        make(root, "sgr", on_bad_audio="report").val_dataloader()


def test_all_kinds_of_bad_audio_are_reported(root: Path) -> None:
    places = sorted((root / "subsetSLUE" / "merged").iterdir())
    places[0].unlink()
    soundfile.write(places[1], np.zeros(RATE), RATE)
    (root / "subsetrace_audio" / "test" / "high" / "0.wav").write_bytes(b"RIFF no sound")
    soundfile.write(root / "subsetrace_audio" / "test" / "middle" / "1.wav", np.zeros(0), RATE)
    data = make(root, "ser", "scr", on_bad_audio="report", batch_size=3)
    first, second = data.val_dataloader()
    assert (first["inputs"], first["keys"], second["keys"]) == ({}, [], [])
    failures = first["failures"] + second["failures"]
    assert [failure["key"] for failure in failures] == ["ser/00000", "ser/00001", "scr/00000", "scr/00001"]
    for failure, why in zip(failures, ("no audio file", "is silent", "cannot be read", "is empty"), strict=True):
        assert why in failure["error"]
        assert ".wav" in failure["error"]
