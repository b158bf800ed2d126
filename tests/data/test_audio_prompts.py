"""AudioPromptDataModule with a processor that shows what it was given, and with the pocket model's own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor

from headrouter_pl.data import AudioError, AudioPrompt, AudioPromptDataModule, read_records
from headrouter_pl.errors import ConfigurationError, UnknownNameError
from headrouter_pl.models.pocket import pocket_folder

RATE = 100
PER_TOKEN = 10  # samples
PAD, AUDIO, TURN = 0, 1, 2  # ids of "", "\x01" and "\n"; every other character is its own id


class StubProcessor:
    """Characters are tokens; ``<a>`` becomes one token per tenth of a second."""

    max_audio_len: float | None = None
    feature_extractor = SimpleNamespace(sampling_rate=RATE)
    answered_differs = False

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def tokenizer(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [TURN if char == "\n" else ord(char) for char in text]}

    def apply_chat_template(self, conversation: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        out = "!" if self.answered_differs and len(conversation) > 1 else ""
        for turn in conversation:
            out += turn["role"][0] + ":" + "".join(
                "<a>" if part["type"] == "audio" else part["text"] for part in turn["content"]
            ) + "\n"  # fmt: skip
        return out + ("a:" if add_generation_prompt else "")

    def __call__(
        self, text: list[str], audio: list[np.ndarray], sampling_rate: int, text_kwargs: Any, return_tensors: str
    ) -> dict[str, Any]:
        assert (sampling_rate, return_tensors) == (RATE, "pt")
        assert text_kwargs == {"padding": True, "padding_side": "left"}
        self.calls.append({"text": text, "audio": audio})
        clips = iter(audio)
        rows = []
        for line in text:
            ids: list[int] = []
            for part in re.split("(<a>)", line):
                ids += [AUDIO] * (len(next(clips)) // PER_TOKEN) if part == "<a>" else self.tokenizer(part)["input_ids"]
            rows.append(ids)
        assert next(clips, None) is None
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([[PAD] * (width - len(ids)) + ids for ids in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows]),
            "input_features": torch.tensor([float(np.abs(part).sum()) for part in audio]),
            "no_tensor": "left out",
        }


def read(ids: Tensor) -> str:
    return "".join({PAD: "", AUDIO: "*", TURN: "\n"}.get(int(i), chr(int(i))) for i in ids)


def clip(seconds: float) -> np.ndarray:
    return np.full(int(seconds * RATE), 0.5, dtype=np.float32)


RECORDS = [
    AudioPrompt(clip(0.5), "What?", "a dog", "one"),
    AudioPrompt([clip(0.2), clip(0.3)], "Which of these two is it?", "no", "two"),
    AudioPrompt(clip(1.0), "Q", "", "three"),
]
ANSWERED = [*RECORDS[:2], AudioPrompt(clip(1.0), "Q", "3", "three")]


def module(**options: Any) -> AudioPromptDataModule:
    return AudioPromptDataModule(StubProcessor(), **options)


class TestBatches:
    def test_ends_where_the_answer_begins(self) -> None:
        batch = module().collate(RECORDS)
        assert [read(ids) for ids in batch["inputs"]["input_ids"]] == [
            "u:*****What?\na:",
            "u:*****Which of these two is it?\na:",
            "u:**********Q\na:",
        ]
        assert batch["inputs"]["attention_mask"][:, -1].tolist() == [1, 1, 1]
        assert batch["inputs"]["attention_mask"][0, 0] == 0  # padded on the left
        assert batch["answers"] == ["a dog", "no", ""]
        assert batch["keys"] == ["one", "two", "three"]
        assert set(batch["inputs"]) == {"input_ids", "attention_mask", "input_features"}
        torch.testing.assert_close(batch["inputs"]["input_features"], torch.tensor([25.0, 10.0, 15.0, 50.0]))

    def test_labels_on_the_answer_alone(self) -> None:
        batch = module().collate_train(ANSWERED)
        ids, labels = batch["inputs"]["input_ids"], batch["inputs"]["labels"]
        assert read(ids[0]) == "u:*****What?\na:a dog\n"
        assert labels.shape == ids.shape
        kept = labels != -100
        assert [read(row[mask]) for row, mask in zip(labels, kept, strict=True)] == ["a dog\n", "no\n", "3\n"]
        assert torch.equal(labels[kept], ids[kept])
        for row in kept.tolist():  # one run, at the end
            assert row == sorted(row)
        assert not kept[batch["inputs"]["attention_mask"] == 0].any()
        assert batch["answers"] == ["a dog", "no", "3"]

    def test_labels_do_not_depend_on_the_padding(self) -> None:
        together = module().collate_train(ANSWERED)["inputs"]
        for row, record in enumerate(ANSWERED):
            alone = module().collate_train([record])["inputs"]
            real = together["attention_mask"][row].bool()
            assert torch.equal(together["labels"][row, real], alone["labels"][0])

    def test_a_template_that_changes_with_the_answer_is_refused(self) -> None:
        data = module()
        data.processor.answered_differs = True
        with pytest.raises(AudioError, match=r"cannot label it"):
            data.collate_train(ANSWERED)

    def test_loaders(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = module(train=ANSWERED, validate=RECORDS[:2], test=RECORDS[1:], predict=RECORDS, batch_size=2)
        for loader, keys in (
            (data.val_dataloader(), [["one", "two"]]),
            (data.test_dataloader(), [["two", "three"]]),
            (data.predict_dataloader(), [["one", "two"], ["three"]]),
        ):
            batches = list(loader)
            assert [batch["keys"] for batch in batches] == keys
            assert not any("labels" in batch["inputs"] for batch in batches)
        orders = set()
        for seed in range(8):
            monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
            batches = list(data.train_dataloader())
            assert all("labels" in batch["inputs"] for batch in batches)
            order = tuple(key for batch in batches for key in batch["keys"])
            assert sorted(order) == ["one", "three", "two"]
            orders.add(order)
        assert len(orders) > 1  # shuffled

    def test_training_goes_on_with_what_it_has_not_seen(self) -> None:
        records = [replace(ANSWERED[0], key=str(number)) for number in range(7)]
        loaders = [module(train=records, batch_size=2).train_dataloader() for _ in range(2)]
        whole = [batch["keys"] for batch in loaders[0]]
        stopped = iter(loaders[1])
        seen = [next(stopped)["keys"] for _ in range(2)]
        resumed = module(train=records, batch_size=2).train_dataloader()
        resumed.load_state_dict(loaders[1].state_dict())
        assert seen + [batch["keys"] for batch in resumed] == whole
        assert sorted(key for keys in whole for key in keys) == [str(number) for number in range(7)]
        resumed.batch_sampler.set_epoch(1)
        assert [batch["keys"] for batch in resumed] != whole
        with pytest.raises(ConfigurationError, match="no records to fit on"):
            module().train_dataloader()

    def test_overfitting_repeats_the_first_batches(self) -> None:
        data = module(train=[replace(ANSWERED[0], key=str(number)) for number in range(7)], batch_size=2)
        data.trainer = L.Trainer(overfit_batches=1, logger=False)
        loader = data.train_dataloader()
        epochs = []
        for epoch in range(3):
            loader.batch_sampler.set_epoch(epoch)
            epochs.append([batch["keys"] for batch in loader])
        assert epochs[0] == epochs[1] == epochs[2]

    @pytest.mark.parametrize("stage", ["validate", "test", "predict"])
    def test_a_stage_without_records(self, stage: str) -> None:
        """Lightning would report nothing, and leave the results of a run before as if they were of this one."""
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        with pytest.raises(ConfigurationError, match=f"no records to {stage}: give {stage}"):
            getattr(trainer, stage)(BoringModel(), datamodule=module(train=ANSWERED))

    def test_records_in_memory_take_the_task_too(self) -> None:
        data = module(validate=[RECORDS[0], replace(RECORDS[1], task="voice")], task="sound", batch_size=2)
        (batch,) = data.val_dataloader()
        assert batch["task_names"] == ["sound", "voice"]
        choice = replace(RECORDS[0], options=("a cat", "a dog"), answer="B")
        (trained,) = module(train=[choice], task="sound").read("train")
        assert trained.answer == "a dog"  # as the same record of a list on disk
        with pytest.raises(ConfigurationError, match="neither a letter nor one of the options"):
            module(train=[replace(choice, answer="a wolf")], task="sound").train_dataloader()
        with pytest.raises(UnknownNameError, match="'soundd'"):
            module(task="soundd")


class TestCutAudio:
    def collate(self, records: Sequence[AudioPrompt], limit: float | None) -> None:
        data = module()
        data.processor.max_audio_len = limit
        data.collate(records)

    def test_says_how_much_is_lost(self) -> None:
        with pytest.warns(UserWarning, match=r"'long one'") as caught:
            self.collate([AudioPrompt(clip(12.5), "Q", key="long one"), AudioPrompt(clip(9), "Q", key="short")], 10)
        (message,) = [str(w.message) for w in caught]
        assert "12.5 s of audio, of which the processor cuts the last 2.5 s" in message
        assert "max_audio_len is 10 s" in message

    def test_without_a_key_names_the_question(self) -> None:
        with pytest.warns(UserWarning, match=r"'Who\?': 11.0 s"):
            self.collate([AudioPrompt([clip(1), clip(11)], "Who?")], 10)

    @pytest.mark.parametrize("limit", [10, None])
    def test_silent_where_nothing_is_lost(self, limit: float | None, recwarn: pytest.WarningsRecorder) -> None:
        self.collate([AudioPrompt(clip(10), "Q")], limit)
        assert not [w for w in recwarn if "cuts" in str(w.message)]


class Extractor(SimpleNamespace):
    sampling_rate, hop_length = RATE, 5


class TestCutByTheFeatureExtractor:
    """Known from the mask of mel frames, for processors that do not say how much they take."""

    def cut(self, records: Sequence[AudioPrompt], frames: int, name: str = "feature_attention_mask") -> list[float]:
        class Cutting(StubProcessor):
            feature_extractor = Extractor()

            def __call__(self, text: list[str], audio: list[np.ndarray], **rest: Any) -> dict[str, Any]:
                mask = torch.zeros(len(audio), frames, dtype=torch.long)
                for row, part in zip(mask, audio, strict=True):
                    row[: len(part) // 5] = 1
                return {**super().__call__(text, audio, **rest), name: mask}

        return AudioPromptDataModule(Cutting()).collate(records)["cut_seconds"]

    @pytest.mark.parametrize("name", ["feature_attention_mask", "input_features_mask"])
    def test_seconds_of_each_sample(self, name: str) -> None:
        records = [AudioPrompt(clip(1), "Q"), AudioPrompt([clip(3), clip(1), clip(2.5)], "Q", key="long")]
        with pytest.warns(UserWarning, match=r"'long': 3.0 s of audio, .* the last 1.0 s \(its feature extractor"):
            assert self.cut(records, 40, name) == [0.0, 1.5]

    def test_frames_that_are_just_enough(self, recwarn: pytest.WarningsRecorder) -> None:
        assert (
            self.cut([AudioPrompt(clip(2), "Q"), AudioPrompt(clip(2.04), "Q"), AudioPrompt(clip(0.5), "Q")], 40)
            == [0] * 3
        )
        assert not [w for w in recwarn if "cuts" in str(w.message)]

    def test_of_qwen2_audio(self) -> None:
        """Its own processor, whose feature extractor takes one second here and thirty in the checkpoint."""
        import tiny_pocket
        from transformers import Qwen2AudioProcessor

        tokenizer = tiny_pocket.make_processor().tokenizer
        marks = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
        tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
        processor = Qwen2AudioProcessor(
            tiny_pocket.make_processor().feature_extractor, tokenizer,
            chat_template="{% for m in messages %}{% for c in m.content %}"
            "{{ '<|AUDIO|>' if c.type == 'audio' else c.text }}{% endfor %}{% endfor %}",
        )  # fmt: skip
        records = [AudioPrompt(tiny_pocket.noise(0, s), "w40", key=str(s)) for s in (0.5, 1.0, 1.75)]
        with pytest.warns(UserWarning, match=r"'1.75': 1.8 s of audio, .* the last 0.8 s"):
            batch = AudioPromptDataModule(processor).collate(records)
        assert batch["cut_seconds"] == [0.0, 0.0, 0.75]
        assert batch["inputs"]["feature_attention_mask"].sum(1).tolist() == [50, 100, 100]

    def test_masks_of_windows_say_nothing(self, recwarn: pytest.WarningsRecorder) -> None:
        class Windows(StubProcessor):
            feature_extractor = Extractor()

            def __call__(self, *args: Any, **rest: Any) -> dict[str, Any]:
                return {**super().__call__(*args, **rest), "input_features_mask": torch.ones(3, 40)}

        assert AudioPromptDataModule(Windows()).collate([AudioPrompt(clip(6), "Q")])["cut_seconds"] == [0.0]


class TestBadAudio:
    def records(self, folder: Path) -> list[AudioPrompt]:
        soundfile = pytest.importorskip("soundfile")
        soundfile.write(folder / "good.wav", np.full(RATE, 0.25), RATE)
        soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
        (folder / "broken.wav").write_bytes(b"RIFF")
        names = ("gone", "good", "silent", "broken")
        return [AudioPrompt([folder / "good.wav", folder / f"{name}.wav"], "Q", "A", name) for name in names]

    def test_is_an_error_that_names_the_file(self, tmp_path: Path) -> None:
        gone, good, silent, broken = self.records(tmp_path)
        with pytest.raises(AudioError, match=r"no audio file at .*gone.wav \(1 of 4 files\)"):
            module(validate=[gone, good, silent, broken]).val_dataloader()
        for record, why in ((silent, "silent.wav is silent"), (broken, "broken.wav cannot be read")):
            loader = module(test=[good, record]).test_dataloader()
            batches = iter(loader)
            assert next(batches)["keys"] == ["good"]
            with pytest.raises(AudioError, match=why):
                next(batches)
        with pytest.raises(AudioError, match=r"'two' is silent|two is silent"):
            module().collate([AudioPrompt(np.zeros(RATE, dtype=np.float32), "Q", key="two")])
        assert module(allow_silence=True).collate([silent])["keys"] == ["silent"]

    def test_is_listed_on_request(self, tmp_path: Path) -> None:
        records = self.records(tmp_path)
        (batch,) = module(predict=records, on_bad_audio="report", batch_size=4).predict_dataloader()
        assert (batch["keys"], batch["answers"], batch["task_names"]) == (["good"], ["A"], [""])
        assert [failure["key"] for failure in batch["failures"]] == ["gone", "silent", "broken"]
        assert batch["failures"][0] == {
            "key": "gone", "task": "", "answer": "A", "options": [],
            "error": f"no audio file at {tmp_path / 'gone.wav'}",
        }  # fmt: skip
        assert len(batch["inputs"]["input_ids"]) == 1

    def test_is_never_trained_on(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match=r"gone.wav"):
            module(train=self.records(tmp_path), on_bad_audio="report").train_dataloader()
        with pytest.raises(AudioError, match=r"gone.wav"):
            module(train=tuple(self.records(tmp_path))).train_dataloader()
        silent = self.records(tmp_path)[2]
        with pytest.raises(AudioError, match=r"silent\.wav is silent"):
            module().collate_train([silent])

    def test_other_words_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"'error' or 'report', got 'skip'"):
            module(on_bad_audio="skip")


class TestAudioInMemory:
    SAMPLES = np.linspace(-0.5, 0.5, RATE, dtype=np.float32)

    @pytest.mark.parametrize(
        "dtype", [np.float16, np.float32, np.float64, torch.bfloat16, torch.float32, torch.float64]
    )
    def test_floats_of_any_kind(self, dtype: Any) -> None:
        tensor = isinstance(dtype, torch.dtype)
        given = torch.tensor(self.SAMPLES).to(dtype).requires_grad_() if tensor else self.SAMPLES.astype(dtype)
        for audio in (given, [given, given]):
            for clip in AudioPrompt(audio, "Q").clips(RATE):
                assert (clip.dtype, clip.shape) == (np.float32, (RATE,))
                np.testing.assert_allclose(clip, self.SAMPLES, atol=2e-3)
        assert len(module().collate([AudioPrompt(given, "Q")])["inputs"]["input_features"]) == 1

    def test_float32_is_taken_as_it_is(self) -> None:
        assert AudioPrompt(self.SAMPLES, "Q").clips(RATE)[0] is self.SAMPLES

    @pytest.mark.parametrize(
        ("audio", "what"),
        [
            ((SAMPLES * 32767).astype(np.int16), r"int16 \[100\]"),
            (torch.ones(RATE, dtype=torch.int64), r"int64 \[100\]"),
            (SAMPLES.astype(np.complex64), r"complex64 \[100\]"),
            (np.stack([SAMPLES, SAMPLES], axis=1), r"float32 \[100, 2\]"),
            (torch.zeros(1, RATE), r"float32 \[1, 100\]"),
            (SAMPLES[:0], r"float32 \[0\]"),
            (np.where(SAMPLES > 0.4, np.nan, SAMPLES), "NaN or infinite in places"),
            (np.where(SAMPLES > 0.4, np.inf, SAMPLES), "NaN or infinite in places"),
            (SAMPLES.tolist(), "float"),
            ([SAMPLES.tolist(), SAMPLES.tolist()], "list"),
            ({"array": SAMPLES, "sampling_rate": RATE}, "dict"),
            ([{"array": SAMPLES, "sampling_rate": RATE}], "dict"),
            (b"RIFF", "bytes"),
            (None, "NoneType"),
        ],
    )
    def test_what_is_no_such_audio_is_refused(self, audio: Any, what: str) -> None:
        record = AudioPrompt(audio, "Q", key="one")
        for data in (module(), module(allow_silence=True)):
            with pytest.raises(AudioError, match=rf"^one: its audio is {what}; .*float32 \[n\] at the processor's"):
                data.collate([record])
        (failure,) = module(on_bad_audio="report").collate([record])["failures"]
        assert failure["key"] == "one"

    def test_without_a_key_the_question_is_named(self) -> None:
        with pytest.raises(AudioError, match=r"^What is it\?: its audio is int16"):
            AudioPrompt(np.zeros(RATE, np.int16), "What is it?").clips(RATE)


def test_a_system_prompt() -> None:
    batch = module(system_prompt="Be brief.").collate(RECORDS[:1])
    assert read(batch["inputs"]["input_ids"][0]) == "s:Be brief.\nu:*****What?\na:"


def test_keys_that_stand_for_two_records() -> None:
    with pytest.raises(AudioError, match=r"1 keys stand for several records, 'one'"):
        module(test=[RECORDS[0], RECORDS[0]]).test_dataloader()


def test_predictions_are_told_by_their_keys_alone() -> None:
    records = [AudioPrompt(clip(0.5), "Q", "A", "one", task) for task in ("question", "voice")]
    assert len(module(test=records).test_dataloader()) == 2  # scores are told by task and key
    with pytest.raises(AudioError, match=r"1 keys stand for several records, 'one'"):
        module(predict=records).predict_dataloader()


class TestTrainingWithoutAnswers:
    def test_the_first_record_without_one_is_named(self) -> None:
        data = module(train=RECORDS)
        with pytest.raises(AudioError, match=r"^'three' has no answer to train on .*set columns, or give answers"):
            data.train_dataloader()
        with pytest.raises(AudioError, match=r"^'three' has no answer"):
            data.collate_train(RECORDS)
        with pytest.raises(AudioError, match=r"^'Who\?' has no answer"):
            module(train=[AudioPrompt(clip(1.0), "Who?", " ")]).train_dataloader()

    def test_other_stages_need_none(self) -> None:
        data = module(validate=RECORDS, test=RECORDS, predict=RECORDS)
        for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
            assert [batch["answers"] for batch in loader] == [["a dog"], ["no"], [""]]


class TestRecords:
    def write(self, folder: Path, *lines: str) -> Path:
        path = folder / "records.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    def test_fields_and_defaults(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            json.dumps({"audio": "a.wav", "prompt": "Q", "answer": "A", "key": "k"}),
            "",
            json.dumps({"audio": ["b.wav", "/c.wav"], "prompt": "Zwei\u2028Zeilen", "answer": 7}, ensure_ascii=False),
            json.dumps({"audio": "d.wav", "prompt": "Q", "answer": None, "key": None}),
            "",
        )
        one, two, three = read_records(path)
        assert one.audio == [tmp_path / "a.wav"]
        assert (one.prompt, one.answer, one.key) == ("Q", "A", "k")
        assert two.audio == [tmp_path / "b.wav", Path("/c.wav")]
        assert (two.prompt, two.answer, two.key) == ("Zwei\u2028Zeilen", "7", "3")
        assert (three.answer, three.key) == ("", "4")

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ('{"audio": "a.wav"}', "KeyError.*prompt"),
            ('{"prompt": "Q"}', "KeyError.*audio"),
            ('{"audio": "a.wav", "prompt": "Q"', "JSONDecodeError"),
            ('["a.wav", "Q"]', "TypeError"),
            ('{"audio": 3, "prompt": "Q"}', "TypeError"),
            ('{"audio": [3], "prompt": "Q"}', "TypeError"),
            ('{"audio": null, "prompt": "Q"}', "TypeError"),
            ('{"audio": [], "prompt": "Q"}', "no audio"),
            ('{"audio": "a.wav", "prompt": null}', "TypeError"),
        ],
    )
    def test_errors_name_the_line(self, tmp_path: Path, line: str, why: str) -> None:
        path = self.write(tmp_path, '{"audio": "a.wav", "prompt": "Q"}', "", line)
        with pytest.raises(
            AudioError, match=rf"records.jsonl, line 3 is not a record with 'audio' and 'prompt'.*{why}"
        ):
            read_records(path)

    def test_files_are_read_relative_to_the_list(self, tmp_path: Path) -> None:
        soundfile = pytest.importorskip("soundfile")
        soundfile.write(tmp_path / "a.wav", np.full(4 * RATE, 0.25), 4 * RATE)  # resampled to the processor's rate
        path = self.write(tmp_path, '{"audio": "a.wav", "prompt": "Q", "answer": "A"}')
        (batch,) = module(validate=str(path)).val_dataloader()
        assert read(batch["inputs"]["input_ids"][0]) == "u:**********Q\na:"
        assert batch["keys"] == ["1"]
        (batch,) = module(train=str(path)).train_dataloader()
        assert read(batch["inputs"]["labels"][0].clamp(min=0)) == "A\n"

    def test_a_missing_recording_is_named(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, '{"audio": "gone.wav", "prompt": "Q"}')
        with pytest.raises(AudioError, match=r"no audio file at .*gone.wav"):
            next(iter(module(test=str(path)).test_dataloader()))


POCKET = pocket_folder()


@pytest.mark.pocket
@pytest.mark.skipif(
    not (POCKET / "pocket.json").is_file() and os.environ.get("HEADROUTER_POCKET_TESTS") != "1",
    reason=f"no pocket model at {POCKET}",
)
class TestPocketProcessor:
    ANSWERS = ("yes", " a leading space", "\nnew line", "1984", "-", "Ünï ☂ 你好", "ends\n")

    @pytest.fixture(scope="class")
    def data(self) -> AudioPromptDataModule:
        return AudioPromptDataModule(str(POCKET))

    def records(self) -> list[AudioPrompt]:
        noise = np.random.default_rng(0).normal(scale=0.1, size=16_000 * 8).astype(np.float32)
        return [
            AudioPrompt(noise[: 16_000 * (index + 1)], "What is it?" * (index + 1), answer, str(index))
            for index, answer in enumerate(self.ANSWERS)
        ]

    def test_labels_are_the_answers(self, data: AudioPromptDataModule) -> None:
        inputs = data.collate_train(self.records())["inputs"]
        tokenizer = data.processor.tokenizer
        assert inputs["attention_mask"][0, 0] == 0
        for ids, labels, answer in zip(inputs["input_ids"], inputs["labels"], self.ANSWERS, strict=True):
            kept = labels != -100
            assert tokenizer.decode(labels[kept]) == answer + "<|im_end|>\n"
            assert torch.equal(ids[kept], labels[kept])
            assert tokenizer.decode(ids[~kept]).endswith("<|im_start|>assistant\n")

    def test_short_audio_comes_in_whole_windows(self, data: AudioPromptDataModule) -> None:
        inputs = data.collate(self.records())["inputs"]
        assert inputs["input_features"].shape == (7, 80, 3000)
        audio = data.processor.audio_token_id
        assert (inputs["input_ids"] == audio).sum(1).tolist() == [25 * seconds for seconds in range(1, 8)]
        rows = inputs["attention_mask"].bool()
        text = data.processor.tokenizer.decode(inputs["input_ids"][2][rows[2]], skip_special_tokens=True)
        assert text.endswith("user\nWhat is it?What is it?What is it?\nassistant\n")
