"""Lists of records in CSV, in folders and as datasets on disk, and records with tasks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from headrouter_pl.data import AudioBytes, AudioError, AudioPromptDataModule, read_audio, read_records
from headrouter_pl.data.records import DatasetRecords
from headrouter_pl.tasks import TASKS

RATE = 8_000


class Processor:
    feature_extractor = SimpleNamespace(sampling_rate=RATE)

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        return ""

    def __call__(self, **_: Any) -> dict[str, Any]:
        return {}


def wave(path: Path, value: float = 0.5) -> Path:
    soundfile.write(path, np.full(RATE // 4, value, dtype=np.float32), RATE, subtype="FLOAT")
    return path


class TestCSV:
    def write(self, folder: Path, text: str, name: str = "list.csv") -> Path:
        path = folder / name
        path.write_text(text, encoding="utf-8-sig")
        return path

    def test_fields(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            'key,audio,prompt,answer,options\none,a.wav,"What, now?",,\n'
            'two,"[""b.wav"", ""/c.wav""]",Which?,cat,"[""dog"", ""cat""]"\n,d.wav,"Zwei\nZeilen",7,\n',
        )
        one, two, three = read_records(path)
        assert (one.audio, one.prompt, one.answer, one.key) == ([tmp_path / "a.wav"], "What, now?", "", "one")
        assert two.audio == [tmp_path / "b.wav", Path("/c.wav")]
        assert (two.answer, two.options) == ("cat", ("dog", "cat"))
        assert (three.prompt, three.answer, three.key) == ("Zwei\nZeilen", "7", "5")

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("a.wav", "another number"),
            ("a.wav,b,c", "another number"),
            (",What?", "KeyError.*audio"),
            ("a.wav,", "KeyError.*prompt"),
            ("[],What?", "no audio"),
        ],
    )
    def test_errors_name_the_line(self, tmp_path: Path, line: str, why: str) -> None:
        path = self.write(tmp_path, f"audio,prompt\na.wav,What?\n{line}\n")
        with pytest.raises(AudioError, match=rf"list.csv, line 3 is not a record.*{why}"):
            read_records(path)

    def test_brackets_are_no_lists_elsewhere(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            "audio,prompt,answer,options\n[2020] a.wav,[music] What is played?,[none],\n"
            '"[""a.wav"", ""b.wav""]",[1] Which?,cat,"[""dog"", ""cat""]"\n',
        )
        one, two = read_records(path)
        assert (one.audio, one.prompt, one.answer) == ([tmp_path / "[2020] a.wav"], "[music] What is played?", "[none]")
        assert two.audio == [tmp_path / "a.wav", tmp_path / "b.wav"]
        assert (two.prompt, two.answer, two.options) == ("[1] Which?", "cat", ("dog", "cat"))

    def test_lists_in_columns_of_other_names(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path, 'files,options,choices,prompt\n"[""a.wav"", ""b.wav""]",[notes],"[""dog"", ""cat""]",Which?\n'
        )
        (record,) = read_records(path, columns={"audio": "files", "options": "choices"})
        assert (len(record.parts()), record.options) == (2, ("dog", "cat"))
        (record,) = read_records(path, columns={"audio": "files", "options": None})
        assert record.options == ()
        with pytest.raises(AudioError, match=r"line 2 is not a record.*JSONDecodeError"):
            read_records(path, columns={"audio": "files"})

    def test_options_that_are_no_list(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "audio,prompt,options,answer\na.wav,Which?,cat|dog,A\n")
        with pytest.raises(AudioError, match=r"line 2 is not a record.*in CSV a JSON list.*got .*cat\|dog"):
            read_records(path)

    def test_no_list(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match=r"no\.csv cannot be read as a list of records.*No such file"):
            read_records(tmp_path / "no.csv")
        with pytest.raises(AudioError, match=r"a\.wav cannot be read as a list of records.*utf-8"):
            read_records(wave(tmp_path / "a.wav"))
        for name in ("none.csv", "none.jsonl"):
            with pytest.raises(AudioError, match=f"{name} holds no records"):
                read_records(self.write(tmp_path, "" if name == "none.jsonl" else "audio,prompt\n", name))

    def test_columns_of_no_field(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "audio,prompt,text\na.wav,What?,seven\n")
        with pytest.raises(AudioError, match=r"columns names \['anser'\].*'answer'"):
            read_records(path, columns={"anser": "text"})

    def test_a_column_that_means_something_else(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "audio,prompt,task\na.wav,What?,homework\n")
        with pytest.raises(AudioError, match=r"line 2.*homework"):
            read_records(path)
        (record,) = read_records(path, columns={"task": None})
        assert (record.prompt, record.task) == ("What?", "")

    def test_columns_of_other_names(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "file,text\na.wav,it was\n")
        (record,) = read_records(path, columns={"audio": "file", "answer": "text"}, task="transcription")
        assert (record.answer, record.task, record.prompt) == ("it was", "transcription", "Transcribe the speech.")
        with pytest.raises(AudioError, match=r"columns names \['sound'\], which no record of .* has"):
            read_records(path, columns={"audio": "sound"}, task="transcription")

    def test_a_column_of_another_name_may_be_empty(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "audio,prompt,text\na.wav,Who?,Bob\nb.wav,Who?,\n")
        records = read_records(path, columns={"answer": "text"})
        assert [record.answer for record in records] == ["Bob", ""]


class TestSuffixes:
    ROW = '{"audio": "a.wav", "prompt": "What?"}'

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.txt", "a", "a.JSONL"])
    def test_jsonl_under_any(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text(f"\n{self.ROW}\n{self.ROW}\n", encoding="utf-8")
        assert [record.prompt for record in read_records(tmp_path / name)] == ["What?"] * 2

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.json", f"[{ROW}, {ROW}]"),
            ("a.json", f"[\n  {ROW}\n]"),
            ("a.tsv", "audio\tprompt\na.wav\tWhat?"),
            ("a", "audio,prompt\na.wav,What?"),
        ],
    )
    def test_other_formats_are_named(self, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")
        suffix = Path(name).suffix
        with pytest.raises(AudioError, match=rf"its suffix is '{suffix}', and line 1 is no .*JSONL.*CSV with a header"):
            read_records(tmp_path / name)

    def test_later_lines_are_named_as_of_any_list(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(f"{self.ROW}\n[]", encoding="utf-8")
        with pytest.raises(AudioError, match=r"a\.json, line 2 is not a record"):
            read_records(tmp_path / "a.json")


class TestFolders:
    def test_one_list_or_one_called_metadata(self, tmp_path: Path) -> None:
        (tmp_path / "questions.csv").write_text("audio,prompt\na.wav,What?\n", encoding="utf-8")
        assert read_records(tmp_path)[0].prompt == "What?"
        (tmp_path / "metadata.jsonl").write_text('{"audio": "a.wav", "prompt": "Who?"}', encoding="utf-8")
        assert read_records(tmp_path)[0].prompt == "Who?"

    def test_none_or_several(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match=r"must hold one .jsonl or .csv.*found none"):
            read_records(tmp_path)
        for name in ("a.csv", "b.jsonl"):
            (tmp_path / name).touch()
        with pytest.raises(AudioError, match=r"found a.csv, b.jsonl"):
            read_records(tmp_path)


class TestTasks:
    def read(self, folder: Path, row: dict[str, Any], task: str | None = None) -> Any:
        path = folder / "list.jsonl"
        path.write_text(json.dumps({"audio": "a.wav", **row}), encoding="utf-8")
        return read_records(path, task=task)[0]

    @pytest.mark.parametrize(
        ("row", "prompt", "answer"),
        [
            ({"task": "question", "question": "Who speaks?", "answer": "Bob"}, "Who speaks?", "Bob"),
            ({"task": "voice", "answer": "Bob"}, "Who is speaking?", "Bob"),
            (
                {"task": "choice", "question": "Which animal?", "options": ["cat", "dog"], "answer": "dog"},
                "Which animal?\nA. cat\nB. dog\nAnswer with the letter of the right option.",
                "B",
            ),
            ({"task": "choice", "answer": "B"}, "Answer with the letter of the right option.", "B"),
            # A task that reads no letters keeps the text, in whose place a letter would never be right.
            ({"task": "sound", "prompt": "A dog or a cat?", "options": ["cat", "dog"], "answer": "dog"},
             "A dog or a cat?", "dog"),
            ({"task": "sound", "prompt": "A dog or a cat?", "options": ["cat", "dog"], "answer": "B"},
             "A dog or a cat?", "dog"),
            # Whose task is told later stays as it is.
            ({"prompt": "A dog or a cat?", "options": ["cat", "dog"], "answer": "dog"}, "A dog or a cat?", "dog"),
            ({"prompt": "A dog or a cat?", "options": ["cat", "dog"], "answer": "B"}, "A dog or a cat?", "B"),
        ],
    )  # fmt: skip
    def test_questions_of_the_tasks_here(self, tmp_path: Path, row: dict[str, Any], prompt: str, answer: str) -> None:
        record = self.read(tmp_path, row)
        assert (record.prompt, record.answer) == (prompt, answer)

    def test_options_need_a_place(self, tmp_path: Path) -> None:
        row = {"question": "Which animal?", "options": ["cat", "dog"], "answer": "dog"}
        with pytest.raises(AudioError, match="the task 'sound' has no place for options in its prompt"):
            self.read(tmp_path, row, "sound")

    def test_a_task_frames_the_question(self, tmp_path: Path) -> None:
        row = {"task": "audiomarathon-mc", "question": "Which genre?", "options": ["jazz", "rock"], "answer": "Rock"}
        record = self.read(tmp_path, row, "question")
        assert record.task == "audiomarathon-mc"
        assert record.prompt == TASKS["audiomarathon-mc"].ask("Which genre?", ["jazz", "rock"])
        assert "A. jazz\nB. rock" in record.prompt
        assert record.answer == "B"

    def test_options_of_the_task(self, tmp_path: Path) -> None:
        record = self.read(tmp_path, {"answer": "Female"}, "audiomarathon-sgr")
        assert (record.answer, record.options) == ("B", ("male", "female"))

    def test_a_prompt_of_its_own_stays(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, {"prompt": "Mine?"}, "audiomarathon-sgr").prompt == "Mine?"

    @pytest.mark.parametrize(
        ("row", "why"),
        [
            ({"task": "sett", "prompt": "?"}, "UnknownNameError.*sett"),
            ({"prompt": "?", "options": ["a dog", "a cat"], "answer": "a wolf"}, "a wolf.*neither a letter nor"),
            ({"question": "?"}, "KeyError.*prompt"),
            ({"prompt": "?", "options": "cat|dog", "answer": "A"}, "options must be a list.*'cat|dog'"),
            ({"prompt": "?", "options": {"A": "cat", "B": "dog"}}, "options must be a list"),
            ({"prompt": "?", "options": 2}, "options must be a list"),
            ({"prompt": "?", "answer": ["yes", "yeah"]}, r"answer must be one text, got \['yes', 'yeah'\]"),
            ({"prompt": "?", "answer": {"text": ["yes"]}}, "answer must be one text"),
        ],
    )
    def test_refused(self, tmp_path: Path, row: dict[str, Any], why: str) -> None:
        with pytest.raises(AudioError, match=rf"line 1 is not a record.*{why}"):
            self.read(tmp_path, row)


def test_audio_in_memory(tmp_path: Path) -> None:
    path = wave(tmp_path / "a.wav", 0.25)
    read = read_audio(AudioBytes(path.read_bytes(), "shelf/a.wav"), RATE)
    np.testing.assert_array_equal(read, read_audio(path, RATE))
    with pytest.raises(AudioError, match=r"shelf/b.wav cannot be read as audio"):
        read_audio(AudioBytes(b"no sound", "shelf/b.wav"))


class TestDatasets:
    @pytest.fixture
    def datasets(self) -> Any:
        return pytest.importorskip("datasets")

    def save(self, datasets: Any, folder: Path, columns: dict[str, Any], **features: Any) -> Path:
        data = datasets.Dataset.from_dict(columns)
        for name, feature in features.items():
            data = data.cast_column(name, feature)
        data.save_to_disk(folder / "saved")
        return folder / "saved"

    def test_audio_in_the_dataset(self, tmp_path: Path, datasets: Any) -> None:
        blobs = [{"bytes": wave(tmp_path / f"{i}.wav", 0.1 + i).read_bytes(), "path": f"{i}.wav"} for i in range(2)]
        path = self.save(
            datasets, tmp_path, {"sound": blobs, "text": ["it was", "so"]}, sound=datasets.Audio(decode=True)
        )  # fmt: skip
        records = read_records(path, columns={"audio": "sound", "answer": "text"}, task="transcription")
        assert len(records) == 2
        assert [(r.answer, r.key, r.prompt) for r in records] == [
            ("it was", "0", "Transcribe the speech."), ("so", "1", "Transcribe the speech."),
        ]  # fmt: skip
        for i, record in enumerate(records):
            (clip,) = record.clips(RATE)
            np.testing.assert_allclose(clip, np.full(RATE // 4, 0.1 + i), rtol=1e-6)

    @pytest.mark.parametrize("several", ["List", "LargeList", "Sequence"])
    def test_several_recordings_a_row(self, tmp_path: Path, datasets: Any, several: str) -> None:
        if not hasattr(datasets, several):
            pytest.skip(f"datasets {datasets.__version__} has no {several}")
        paths = [str(wave(tmp_path / f"{i}.wav", 0.1 + i)) for i in range(3)]
        blobs = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
        path = self.save(
            datasets, tmp_path, {"audio": [paths[:2], paths[2:]], "prompt": ["Which?"] * 2},
            audio=getattr(datasets, several)(datasets.Audio()),
        )  # fmt: skip
        data = datasets.Dataset.from_dict({"audio": [blobs], "prompt": ["Which?"]})
        data.cast_column("audio", getattr(datasets, several)(datasets.Audio())).save_to_disk(tmp_path / "bytes")
        one, two = read_records(path)
        (three,) = read_records(tmp_path / "bytes")
        for record, want in ((one, [0.1, 1.1]), (two, [2.1]), (three, [0.1, 1.1, 2.1])):
            assert [float(clip[0]) for clip in record.clips(RATE)] == pytest.approx(want)

    def test_paths_classes_and_bad_audio(self, tmp_path: Path, datasets: Any) -> None:
        path = self.save(
            datasets, tmp_path,
            {"audio": [str(wave(tmp_path / "a.wav")), "gone.wav"], "prompt": ["Which?"] * 2, "label": [1, 0]},
            label=datasets.ClassLabel(names=["dog", "cat"]),
        )  # fmt: skip
        records = read_records(path, columns={"answer": "label"})
        assert [record.answer for record in records] == ["cat", "dog"]
        assert records[0].clips(RATE)[0].shape == (RATE // 4,)
        with pytest.raises(AudioError, match=r"no audio file at .*saved.gone.wav"):
            records[1].clips(RATE)

    def test_an_unknown_class_is_no_answer(self, tmp_path: Path, datasets: Any) -> None:
        path = self.save(
            datasets, tmp_path, {"audio": ["a.wav"] * 3, "prompt": ["Which?"] * 3, "answer": [-1, 1, None]},
            answer=datasets.ClassLabel(names=["dog", "cat"]),
        )  # fmt: skip
        assert [record.answer for record in read_records(path)] == ["", "cat", ""]

    def test_as_validation_data(self, tmp_path: Path, datasets: Any) -> None:
        path = self.save(
            datasets, tmp_path, {"audio": [str(wave(tmp_path / "a.wav"))], "prompt": ["Q"], "answer": ["A"]}
        )
        (batch,) = AudioPromptDataModule(Processor(), validate=str(path), task="question").val_dataloader()
        assert (batch["answers"], batch["task_names"], batch["failures"]) == (["A"], ["question"], [])

    def test_keys_and_answers_are_checked(self, tmp_path: Path, datasets: Any) -> None:
        path = self.save(
            datasets, tmp_path,
            {"audio": [str(wave(tmp_path / "a.wav"))] * 3, "prompt": ["Q"] * 3, "id": ["x", "y", "x"],
             "kind": ["voice", None, "question"]},
        )  # fmt: skip
        whole = {"test": str(path), "predict": str(path), "train": str(path)}
        named = AudioPromptDataModule(Processor(), **whole, columns={"key": "id", "task": "kind"})
        assert [batch["keys"] for batch in named.test_dataloader()] == [["x"], ["y"], ["x"]]
        with pytest.raises(AudioError, match=r"1 keys stand for several records, 'x'"):
            named.predict_dataloader()
        for stage in ("test", "predict"):  # without their tasks
            with pytest.raises(AudioError, match=r"1 keys stand for several records, 'x'"):
                getattr(AudioPromptDataModule(Processor(), **whole, columns={"key": "id"}), f"{stage}_dataloader")()
        unnamed = AudioPromptDataModule(Processor(), **whole)
        assert sorted(batch["keys"][0] for batch in unnamed.predict_dataloader()) == ["0", "1", "2"]
        with pytest.raises(AudioError, match=r"'[012]' has no answer to train on .*set columns"):
            next(iter(unnamed.train_dataloader()))

    def test_no_row_is_read_to_find_those_left_out(
        self, tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.save(datasets, tmp_path, {"audio": ["a.wav"] * 3, "prompt": ["Q"] * 3, "id": ["x", None, "y"]})
        for columns, done, key in (({"key": "id"}, ["x", "1"], "y"), (None, ["0", "1"], "2")):
            data = AudioPromptDataModule(Processor(), predict=str(path), columns=columns)
            data.leave_out(done)
            with monkeypatch.context() as patch:
                patch.setattr(DatasetRecords, "__getitem__", None)
                left = data.predict_dataloader().dataset
            assert [record.key for record in left] == [key]

    def test_refused(self, tmp_path: Path, datasets: Any) -> None:
        path = self.save(datasets, tmp_path, {"sound": ["a.wav"], "prompt": ["Q"]})
        with pytest.raises(AudioError, match=r"no column 'audio', but \['sound', 'prompt'\]"):
            read_records(path)
        with pytest.raises(
            AudioError, match=r"columns names \['text'\], which .* does not have, but \['sound', 'prompt'\]"
        ):
            read_records(path, columns={"audio": "sound", "answer": "text"})
        datasets.DatasetDict({"test": datasets.load_from_disk(str(path))}).save_to_disk(tmp_path / "splits")
        with pytest.raises(AudioError, match=r"several splits; give one of .*splits/test"):
            read_records(tmp_path / "splits")
