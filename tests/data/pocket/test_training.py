"""Training data: plans, their order over the curriculum, and batches, on tones that were never encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from headrouter_pl.data.packing import PackedSample
from headrouter_pl.data.pocket.descriptions import DESCRIBE
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.pools import Pools
from headrouter_pl.data.pocket.training import CurriculumSampler, PocketDataModule, Stage
from headrouter_pl.data.pocket.windows import (
    _SHARD,
    FRAMES_PER_SECOND,
    WINDOW_SECONDS,
    EncodedWindows,
    draw_phrase_window,
    draw_varied_window,
    draw_window,
)
from headrouter_pl.errors import HeadRouterError

FRAMES = round(WINDOW_SECONDS * FRAMES_PER_SECOND)
STAGES = [Stage(30, (1, 2), questions=3), Stage(10, windows=2, questions=8)]


class Collate:
    """Counts tokens and keeps samples, where the real one needs a tokenizer."""

    def length(self, frames: int, questions: Sequence[tuple[str, str]]) -> int:
        return frames + 10 * len(questions)

    def __call__(self, samples: list[PackedSample]) -> list[PackedSample]:
        return samples


def encode(windows: EncodedWindows) -> None:
    """In place of the encoder's output: the number of the window, and of the frame."""
    windows.folder.mkdir(parents=True, exist_ok=True)
    for number in windows.missing():
        shard = np.zeros((_SHARD, FRAMES, 2), np.float16)
        shard[..., 0] = np.arange(number * _SHARD, (number + 1) * _SHARD)[:, None]
        shard[..., 1] = np.arange(FRAMES)
        np.save(windows._paths[number], shard)


@pytest.fixture
def data(tones_library: ClipLibrary, tmp_path: Path) -> PocketDataModule:
    module = PocketDataModule(
        STAGES,
        windows=6,
        varied_windows=2,
        sparse_windows=2,
        phrase_windows=2,
        sentence_windows=2,
        validation_windows=3,
        max_tokens=1600,
        cache=str(tmp_path),
    )
    module.library = tones_library
    module.collate = Collate()  # type: ignore[assignment]
    for split in ("train", "validation"):
        for windows in module.encoded_windows(tones_library, split):
            encode(windows)
            assert not windows.missing()
    return module


def test_windows_are_drawn_by_number(tones_library: ClipLibrary, tmp_path: Path) -> None:
    pools = Pools.of(tones_library, "train")
    few, many = (EncodedWindows(pools, count, 3, tmp_path) for count in (2, 5))
    assert few._paths == many._paths
    assert few.scenes == many.scenes[:2]
    assert EncodedWindows(pools, 2, 4, tmp_path)._paths != few._paths
    for scene in many.scenes:
        assert scene.seconds == WINDOW_SECONDS
        assert max(event.end for event in scene.events) <= WINDOW_SECONDS
        assert {tones_library.splits[event.clip] for event in scene.events} == {"train"}


def test_kinds_of_windows_do_not_hear_the_same_recordings(tones_library: ClipLibrary, tmp_path: Path) -> None:
    pools = Pools.of(tones_library, "train")
    kinds = [EncodedWindows(pools, 3, 0, tmp_path, draw) for draw in (draw_window, draw_varied_window)]
    plain, varied = ([[event.clip for event in scene.events[:5]] for scene in kind.scenes] for kind in kinds)
    assert all(ours != theirs for ours, theirs in zip(plain, varied, strict=True))


def test_who_says_much_is_heard_more(tones_library: ClipLibrary) -> None:
    """By the number of clips to a power; 0 by answers alone."""
    voices = {"one": [0], "four": [1, 2, 3, 4], "sixteen": list(range(5, 21))}
    pools = Pools(tones_library, {"prompt": voices}, [], [])
    rng = np.random.default_rng(0)
    for power, shares in ((0.0, [1 / 3, 1 / 3, 1 / 3]), (0.5, [1 / 7, 2 / 7, 4 / 7]), (1.0, [1 / 21, 4 / 21, 16 / 21])):
        drawn = [pools.draw(rng, "prompt", power=power) for _ in range(3000)]
        heard = [sum(clip in clips for clip in drawn) / len(drawn) for clips in voices.values()]
        np.testing.assert_allclose(heard, shares, atol=0.035)
    assert pools.draw(rng, "prompt", where=lambda clip: False, power=0.5) is None
    assert pools.draw(rng, "letter", power=0.5) is None


def test_phrase_windows_are_of_synthetic_voices_alone(tones_library: ClipLibrary) -> None:
    scene = draw_phrase_window(np.random.default_rng(0), Pools.of(tones_library, "train"))
    clips = [tones_library.clips[event.clip] for event in scene.events]
    assert len(clips) > 10
    assert {clip.voice for clip in clips} == {"synthetic/one", "synthetic/two"}
    assert all(clip.phrase for clip in clips)


def test_half_a_file_is_not_taken_for_a_window(tones_library: ClipLibrary, tmp_path: Path) -> None:
    windows = EncodedWindows(Pools.of(tones_library, "train"), 30, 0, tmp_path)
    encode(windows)
    windows._paths[1].rename(windows._paths[1].with_suffix(".123.tmp"))  # what a stop leaves
    assert windows.missing() == [1]


@pytest.mark.parametrize("kept", [0, 5, 60, 200, -1])
def test_a_short_file_is_encoded_anew(tones_library: ClipLibrary, tmp_path: Path, kept: int) -> None:
    windows = EncodedWindows(Pools.of(tones_library, "train"), 60, 0, tmp_path)
    encode(windows)
    assert not windows.missing()
    whole = windows._paths[1].read_bytes()
    windows._paths[1].write_bytes(whole[:kept])
    assert windows.missing() == [1]
    encode(windows)
    assert windows._paths[1].read_bytes() == whole
    np.save(windows._paths[2], np.zeros((_SHARD - 1, FRAMES, 2), np.float16))
    assert windows.missing() == [2]


def test_plans_are_the_same_for_the_same_seed(data: PocketDataModule) -> None:
    windows = data._windows("train")
    for stage in STAGES:
        assert data._plan(windows, stage, [0, 1]) == data._plan(windows, stage, [0, 1])
        assert data._plan(windows, stage, [0, 1]) != data._plan(windows, stage, [0, 2])


def test_plans_are_what_the_stage_says(data: PocketDataModule) -> None:
    windows = data._windows("train")
    for plan in data._plan(windows, STAGES[0], [0, 0]):
        assert all(0 <= first < last <= FRAMES for _, first, last in plan.parts)
        assert 1 <= len(windows.scene(plan.parts).events) <= 2
        assert 1 <= len(plan.questions) <= 3
    for plan in data._plan(windows, STAGES[1], [0, 1]):
        assert 1 <= len(plan.parts) <= 2
        assert all(part[1:] == (0, FRAMES) for part in plan.parts)
        assert 1 <= len(plan.questions) <= 8


def test_wrong_lines_are_of_the_same_split(data: PocketDataModule) -> None:
    library = data.library
    splits = {clip.english: split for clip, split in zip(library.clips, library.splits, strict=True) if clip.room}
    lines = 0
    for plan in data._plan(data._windows("train"), Stage(200, (2, 3)), [0, 3]):
        for (prompt, answer), task in zip(plan.questions, plan.tasks, strict=True):
            if task == "line":
                lines += 1
                assert {splits[line] for line in splits if line in prompt} | {splits[answer]} == {"train"}
    assert lines > 5


def test_a_described_audio_names_what_is_in_it(data: PocketDataModule) -> None:
    windows = data._windows("train")
    for plan in data._plan(windows, Stage(20, (2, 3), questions=2, described=1.0), [0, 2]):
        prompt, answer = plan.questions[-1]
        assert prompt == DESCRIBE
        assert len(answer.split("; ")) == len(windows.scene(plan.parts).events)
        assert len(plan.questions) <= 3
    assert all(prompt != DESCRIBE for plan in data._plan(windows, STAGES[0], [0, 0]) for prompt, _ in plan.questions)


def test_batches(data: PocketDataModule) -> None:
    batches = list(data.train_dataloader())
    assert sum(map(len, batches)) == sum(stage.samples for stage in STAGES)
    for batch in batches:
        lengths = [data.collate.length(len(sample.features), sample.questions) for sample in batch]
        assert len(batch) == 1 or max(lengths) * len(batch) <= data.max_tokens
        for sample in batch:
            assert sample.questions
    longest_first_stage = max(len(s.features) for batch in batches for s in batch if int(s.key) < STAGES[0].samples)
    assert longest_first_stage < FRAMES


def test_stages_in_a_list_are_trained_on_at_once(data: PocketDataModule) -> None:
    data.stages = [Stage(4, (1, 1)), [Stage(30, (1, 1)), Stage(10, windows=1)]]
    whole = [{len(sample.features) == FRAMES for sample in batch} for batch in data.train_dataloader()]
    assert sum(map(len, data.train_dataloader())) == 44
    assert whole[0] == {False}
    assert all(len(kinds) == 1 for kinds in whole)  # of one length
    turns = sum(before != after for before, after in pairwise(whole))
    assert turns > 2  # now this kind, now that


def test_validation_is_of_clips_held_out_and_always_the_same(data: PocketDataModule) -> None:
    keys = [[[sample.questions for sample in batch] for batch in data.val_dataloader()] for _ in range(2)]
    assert keys[0] == keys[1]
    heard = {event.clip for scene in data._windows("validation").scenes for event in scene.events}
    assert {data.library.splits[clip] for clip in heard} == {"validation"}


def test_the_first_validation_batches_are_not_the_longest(data: PocketDataModule) -> None:
    data.max_tokens = 300
    longest = [max(len(sample.features) for sample in batch) for batch in data.val_dataloader()]
    assert len(set(longest)) > 2
    assert longest != sorted(longest, reverse=True)


class TestCurriculum:
    LENGTHS = ([10] * 20, [50] * 10, [100] * 5)

    def test_stages_follow_each_other_and_every_sample_comes_once(self) -> None:
        batches = list(CurriculumSampler(self.LENGTHS, 200))
        assert len(batches) == len(CurriculumSampler(self.LENGTHS, 200))
        stages = [{(index >= 20) + (index >= 30) for index in batch} for batch in batches]
        assert all(len(stage) == 1 for stage in stages)
        order = [min(stage) for stage in stages]
        assert order == sorted(order)
        assert sorted(index for batch in batches for index in batch) == list(range(35))

    @pytest.mark.parametrize("used", [0, 1, 4, 7])
    def test_resume(self, used: int) -> None:
        whole = list(CurriculumSampler(self.LENGTHS, 200, seed=3))
        resumed = CurriculumSampler(self.LENGTHS, 200, seed=3)
        resumed.load_state_dict({"epoch": 0, "done": used})
        assert list(resumed) == whole[used:]

    def test_a_state_of_other_stages_is_refused(self) -> None:
        sampler = CurriculumSampler(self.LENGTHS, 200, seed=3)
        sampler.done = 4
        other = CurriculumSampler(self.LENGTHS[::-1], 200, seed=3)
        assert len(other) == len(sampler)
        with pytest.raises(HeadRouterError, match=rf"other batches \(plan: {sampler.plan}, now {other.plan}\)"):
            other.load_state_dict(sampler.state_dict())

    def test_the_epoch_after_a_resumed_one_is_whole(self) -> None:
        sampler = CurriculumSampler(self.LENGTHS, 200, seed=3)
        sampler.load_state_dict({"epoch": 0, "done": len(sampler)})
        sampler.set_epoch(0)
        assert list(sampler) == []
        sampler.load_state_dict({"epoch": 0, "done": len(sampler)})
        sampler.set_epoch(1)
        assert len(list(sampler)) == len(sampler)

    def test_a_loader_that_was_stopped_goes_on(self, data: PocketDataModule) -> None:
        def keys(loader: object, count: int | None = None) -> list[list[str]]:
            batches = []
            for batch in loader:  # type: ignore[attr-defined]
                batches.append([sample.key for sample in batch])
                if len(batches) == count:
                    break
            return batches

        whole = keys(data.train_dataloader())
        stopped = data.train_dataloader()
        assert keys(stopped, 3) == whole[:3]
        state = stopped.state_dict()
        resumed = data.train_dataloader()
        resumed.load_state_dict(state)
        assert keys(resumed) == whole[3:]

    def test_seed_and_epoch_change_the_order(self) -> None:
        sampler = CurriculumSampler(self.LENGTHS, 200)
        first = list(sampler)
        sampler.set_epoch(1)
        assert list(sampler) != first
        assert list(CurriculumSampler(self.LENGTHS, 200, seed=1)) != first
        assert list(CurriculumSampler(self.LENGTHS, 200)) == first


def test_answers_are_evenly_right(data: PocketDataModule) -> None:
    """Greek is as often right as the language of most recordings, as far as there are questions to choose from."""
    answers: dict[str, Counter[str]] = {}
    for plan in data._plan(data._windows("train"), Stage(300, (2, 4), questions=3), [0, 4]):
        for (_, answer), task in zip(plan.questions, plan.tasks, strict=True):
            answers.setdefault(task, Counter())[answer] += 1
    for task in ("language", "gender", "speaker"):
        counts = answers[task].values()
        assert len(counts) > 1
        assert max(counts) <= 1.5 * sum(counts) / len(counts) + 3, (task, answers[task])
