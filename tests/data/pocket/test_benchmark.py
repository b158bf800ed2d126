"""The benchmark, end to end on tones."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.stats import chisquare

from headrouter_pl.data import read_records
from headrouter_pl.data.pocket import PocketBenchmark, PocketItem, benchmark
from headrouter_pl.data.pocket.casting import Casting, label_of
from headrouter_pl.data.pocket.clips import SAMPLING_RATE, Clip
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.questions import QUESTION_TASKS, Question
from headrouter_pl.data.pocket.scenes import Scene
from headrouter_pl.errors import HeadRouterError

Drawn = list[tuple[Scene, list[Question]]]
LENGTHS = {8: 4, 15: 5, 30: 6}


@pytest.fixture(scope="module")
def drawn(tones_library: ClipLibrary) -> Drawn:
    """Forty scenes of each of some lengths, without their audio."""
    patch = pytest.MonkeyPatch()
    patch.setattr(benchmark, "LENGTHS", LENGTHS)
    scenes = [(scene, asked) for _, scene, asked in benchmark._scenes(tones_library, "test", 40, 0)]
    patch.undo()
    return scenes


def questions(drawn: Drawn) -> list[Question]:
    return [question for _, asked in drawn for question in asked]


class TestDrawing:
    def test_answers_are_even(self, drawn: Drawn) -> None:
        answers: dict[str, Counter[str]] = {}
        for question in questions(drawn):
            answers.setdefault(question.task, Counter())[question.answer] += 1
        assert set(answers) == set(QUESTION_TASKS)
        for task in answers.keys() - {"object", "line", "code", "phrase"}:  # these have more answers than questions
            assert max(answers[task].values()) - min(answers[task].values()) <= 3, (task, answers[task])
        kinds = Counter("number" if c.isdigit() else "word" if c[1:] else "letter" for c in answers["code"].elements())
        assert max(kinds.values()) - min(kinds.values()) <= 2
        assert max(answers["code"].values()) <= 3

    def test_evidence_stands_in_the_scene_and_says_the_answer(self, drawn: Drawn, tones_library: ClipLibrary) -> None:
        for scene, asked in drawn:
            for question in asked:
                assert all(scene.events[i].end <= scene.seconds for i in question.evidence)
                if len(question.evidence) == 1:
                    clip = tones_library.clips[scene.events[question.evidence[0]].clip]
                    label = label_of(question.task, clip)
                    assert label
                    known = {*label, clip.voice.split("/")[-1], clip.category}
                    assert question.answer in {text.lower() for text in known} | known

    def test_only_clips_of_the_split_are_heard(self, drawn: Drawn, tones_library: ClipLibrary) -> None:
        heard = {event.clip for scene, _ in drawn for event in (*scene.events, *scene.murmurs)}
        assert {tones_library.splits[clip] for clip in heard} == {"test"}

    def test_one_sound_that_is_not_speech(self, drawn: Drawn, tones_library: ClipLibrary) -> None:
        kinds = [Counter(tones_library.clips[event.clip].kind for event in scene.events) for scene, _ in drawn]
        assert all(kind["sound"] <= 1 for kind in kinds)
        assert np.mean([kind["sound"] == 1 and kind["speech"] >= 2 for kind in kinds]) > 0.5

    def test_where_voices_are_counted_nobody_murmurs(self, drawn: Drawn) -> None:
        for scene, asked in drawn:
            if {question.task for question in asked} & {"same_speaker", "voice_count", "first_speaker"}:
                assert not scene.murmurs

    def test_semantic_and_acoustic_evidence_stand_apart(self, drawn: Drawn) -> None:
        apart = []
        for _, asked in drawn:
            parts = [set(), set()]
            for question in asked:
                parts[QUESTION_TASKS[question.task].type == "semantic"].update(question.evidence)
            apart.append(not parts[0] & parts[1])
        assert np.mean(apart) >= 0.7

    def test_the_seed_decides(self, tones_library: ClipLibrary) -> None:
        def draw(seed: int) -> tuple[Scene, list[Question]]:
            casting = Casting(tones_library, "test")
            return casting.draw(np.random.default_rng(seed), 15, 5, ("code", "phrase", "speaker", "sound"))

        assert draw(1) == draw(1)
        assert draw(1) != draw(2)

    def test_what_no_clip_can_answer(self, tones_library: ClipLibrary) -> None:
        casting = Casting(tones_library, "test")
        with pytest.raises(HeadRouterError, match="1 s that can be asked code, phrase"):
            casting.draw(np.random.default_rng(0), 1, 4, ("code", "phrase"))


class TestPromptsAlone:
    """What a model could answer without listening."""

    def test_the_right_option_stands_anywhere(self, drawn: Drawn) -> None:
        places: dict[int, Counter[int]] = {}
        for question in questions(drawn):
            if question.task not in ("gender", "same_speaker", "first_speaker") and question.options:
                options = question.options
                places.setdefault(len(options), Counter())[options.index(question.answer)] += 1
        assert sum(places[4].values()) > 150
        assert chisquare([places[4][place] for place in range(4)]).pvalue > 1e-3

    def test_looks_do_not_tell_the_right_option(self, drawn: Drawn) -> None:
        asked = [question for question in questions(drawn) if len(question.options) == 4]
        for looks in (len, lambda option: -len(option), lambda option: option):
            hits = [sorted(q.options, key=lambda o: (looks(o), o))[0] == q.answer for q in asked]
            assert abs(np.mean(hits) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(asked))

    def test_no_constant_answer_is_right_more_often_than_chance(self, drawn: Drawn) -> None:
        found: dict[tuple[str, tuple[str, ...]], list[Question]] = {}
        for question in questions(drawn):
            kind = question.options if len(question.options) == 2 else ("open",) * (not question.options)
            found.setdefault((question.task, kind), []).append(question)
        for (task, kind), asked in found.items():
            if kind and task not in ("transcription", "object"):
                (_, majority), *_ = Counter(question.answer for question in asked).most_common(1)
                chance, n = np.mean([question.chance for question in asked]), len(asked)
                assert majority / n <= chance + 4 * np.sqrt(chance * (1 - chance) / n) + 1 / n, (task, majority, n)

    def test_wording_does_not_tell_the_answer(self, drawn: Drawn) -> None:
        by_prompt: dict[str, Counter[str]] = {}
        for question in questions(drawn):
            if question.task in ("gender", "same_speaker", "first_speaker"):
                by_prompt.setdefault(question.prompt.split(",")[-1][:12], Counter())[question.answer] += 1
        for prompt, counts in by_prompt.items():
            if (n := sum(counts.values())) >= 12:
                assert max(counts.values()) / n < 0.5 + 2.0 / np.sqrt(n), (prompt, counts)


@pytest.fixture
def small(tones_library: ClipLibrary, tones_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark of 8 and 30 s on the tones; its cache."""
    monkeypatch.setattr(benchmark, "LENGTHS", {8: 4, 30: 5})

    def open_tones(**options: object) -> ClipLibrary:
        assert not options["sealed"]
        return tones_library

    monkeypatch.setattr(benchmark.ClipLibrary, "open", open_tones)
    return tmp_path


open_benchmark = partial(PocketBenchmark.open, progress=False)


class TestOpen:
    def test_items_audio_and_manifest(self, small: Path, tones_library: ClipLibrary) -> None:
        made = open_benchmark("test", scenes=4, cache=small)
        assert len({item.key for item in made.items}) == len(made.items) == 2 * (3 * 4 + 2)
        keys = {clip.key: index for index, clip in enumerate(tones_library.clips)}
        scenes = {row["audio"]: row for row in map(json.loads, (made.folder / "scenes.jsonl").open())}
        for item in made.items:
            audio, rate = soundfile.read(made.folder / item.audio)
            assert (rate, len(audio)) == (SAMPLING_RATE, item.seconds * SAMPLING_RATE)
            assert item.type == QUESTION_TASKS[item.task].type
            events = scenes[item.audio]["events"]
            assert len(item.evidence_seconds) == len(item.evidence_tokens) >= 1
            for (start, end), (first, last) in zip(item.evidence_seconds, item.evidence_tokens, strict=True):
                (event,) = (e for e in events if start <= e["start"] and e["end"] <= end)
                assert first / 25 <= event["start"]
                assert event["end"] <= last / 25
                length = tones_library.seconds(keys[event["clip"]])
                assert length <= end - start <= length + 0.003
                assert 0 <= first < last <= 25 * item.seconds
                assert (last - first) / 25 <= length + 0.08
        manifest = [json.loads(line) for line in (made.folder / "manifest.jsonl").open()]
        assert {row["split"] for row in manifest} == {"test"}
        assert all(row["licence"] == "CC0-1.0" and len(row["sha256"]) == 64 for row in manifest)
        assert {event["clip"] for row in scenes.values() for event in row["events"]} <= {row["key"] for row in manifest}

    def test_it_is_a_list_of_records(self, small: Path) -> None:
        made = open_benchmark("validation", scenes=2, cache=small)
        listed = read_records(made.folder / "items.jsonl", columns={"task": None, "options": None})
        assert [(r.prompt, r.answer, r.key) for r in listed] == [(i.prompt, i.answer, i.key) for i in made.items]
        assert len(listed[0].clips(SAMPLING_RATE)[0]) == 8 * SAMPLING_RATE

    def test_summary(self, small: Path) -> None:
        made = open_benchmark("test", scenes=4, cache=small)
        found = made.summary()
        assert sum(n for counts in found["tasks"].values() for n in counts.values()) == len(made.items)
        assert found["audios"] == 8
        assert found["hours"] == pytest.approx(4 * 38 / 3600)
        assert found["competing"] == 1.0
        assert found["apart"] == 0.75
        assert sum(clips * audios for audios, clips in found["uses"].items()) >= 2 * (3 * 4 + 2)

    def test_it_is_built_once(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = open_benchmark("test", scenes=1, cache=small)
        monkeypatch.setattr(benchmark, "render", None)
        again = open_benchmark("test", scenes=1, cache=small)
        assert again == first
        assert all(isinstance(item, PocketItem) for item in again.items)

    def test_seed_and_number_of_scenes_make_another(self, small: Path) -> None:
        folders = [open_benchmark("test", scenes=n, seed=s, cache=small).folder for n, s in ((1, 0), (1, 1), (2, 0))]
        assert len(set(folders)) == 3

    def test_half_a_folder_is_built_again(self, small: Path) -> None:
        made = open_benchmark("test", scenes=1, cache=small)
        whole = (made.folder / "items.jsonl").read_bytes()
        (made.folder / "benchmark.json").unlink()  # written last: killed before
        (made.folder / "items.jsonl").write_bytes(whole[:40])
        (made.folder / "008-000.flac").write_bytes(b"half")
        again = open_benchmark("test", scenes=1, cache=small)
        assert again == made
        assert (made.folder / "items.jsonl").read_bytes() == whole
        assert len(soundfile.read(made.folder / "008-000.flac")[0]) == 8 * SAMPLING_RATE

    def test_a_stop_while_building_leaves_nothing(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(benchmark, "render", stop)
            with pytest.raises(KeyboardInterrupt):
                open_benchmark("test", scenes=1, cache=small)
        assert [path.suffix for path in (small / "pocket-benchmark").iterdir()] == [".lock"]
        assert open_benchmark("test", scenes=1, cache=small).items

    def test_sealed_only_by_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class OpenedError(Exception):
            pass

        def open_library(**options: object) -> None:
            raise OpenedError(options["sealed"])

        monkeypatch.setattr(benchmark.ClipLibrary, "open", open_library)
        for split in ("train", "validation", "test", "sealed"):
            with pytest.raises(OpenedError, match=str(split == "sealed")):
                open_benchmark(split, cache=tmp_path)
        with pytest.raises(HeadRouterError, match="tset"):
            open_benchmark("tset", cache=tmp_path)


def test_what_cannot_be_asked_has_no_label() -> None:
    speech = {"key": "k", "package": "p", "kind": "speech", "language": "English"}
    assert label_of("object", Clip(**speech, item="it", category="")) == ()
    assert label_of("line", Clip(**speech, room="r", english="It took you %1 hours!")) == ()
    assert label_of("transcription", Clip(**speech, text="word")) == ()
    assert label_of("transcription", Clip(**speech, text="Two words.")) == ("two words",)
    assert label_of("code", Clip(**speech, code="7")) == ("number", "7")
    assert label_of("sound", Clip("k", "p", "sound", sound="whoosh")) == ()
