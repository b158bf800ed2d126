"""Profiles fitted inside Lightning runs: by ProfileCalibration, and by HeadRouterCallback(profile="self") itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import tiny
import tiny_pocket
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from two_processes import run_two

from headrouter_pl import AudioTokenPruner, HeadProfile, HeadRouterCallback, LALMModule
from headrouter_pl.calibration import CalibrationSums, ProfileCalibrator, append_answers
from headrouter_pl.callbacks import ProfileCalibration, profile_calibration
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule
from headrouter_pl.errors import ConfigurationError, HeadRouterError, UnknownNameError
from headrouter_pl.models import find_lalm
from headrouter_pl.pruning.measuring import measure_attention
from headrouter_pl.routers import PromptRouter, SelectivityRouter
from headrouter_pl.scorers import Probe

torch.set_num_threads(1)

FAMILY = "audioflamingo3"
PLACE = {"semantic": "semantic", "sound": "acoustic"}
PROMPTS = {"semantic": "Transcribe the speech.", "sound": "What sound can be heard in the background?"}
CLIPS = [[[20], [9]], [[12], [7]], [[16], [25]], [[11], [22]], [[18], [8]], [[13], [21]]]
ANSWERS = ["abc", "d"]


class Tokenizer:
    """Reads the type of a prompt out of its last id; one token a letter the other way."""

    pad_token_id = 0

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        return [PROMPTS[kind_of(int(ids[-1]))] for ids in sequences]

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 64 + 8 for letter in text]}


def kind_of(last: int) -> str:
    return list(PLACE)[last % 2]


@cache
def batches() -> list[dict[str, Any]]:
    model = tiny.build(FAMILY)
    made = []
    for seed, clips in enumerate(CLIPS):
        inputs = tiny.inputs(FAMILY, model, clips, seed=seed)
        inputs["input_ids"][:, -1] = torch.tensor([10, 11])  # a semantic question, and one about a sound
        made.append({
            "inputs": inputs, "types": [kind_of(int(ids[-1])) for ids in inputs["input_ids"]],
            "evidence": [[(2, 6)], [(0, 2), (4, 6)]], "answers": ANSWERS, "keys": [f"{seed}/a", f"{seed}/b"],
        })  # fmt: skip
    return made


class Module(L.LightningModule):
    def __init__(self, processor: Any = None) -> None:
        super().__init__()
        self.model = tiny.build(FAMILY)
        self.processor = Tokenizer() if processor is None else processor
        self.seen: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(self.model(**batch["inputs"], use_cache=False).logits.clone())

    test_step = predict_step = validation_step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(**batch["inputs"], use_cache=False).logits.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "max_epochs": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **{**settings, **options})


def loader(data: list[dict[str, Any]] | None = None) -> DataLoader[Any]:
    return DataLoader(batches() if data is None else data, batch_size=None)


def same(one: HeadProfile, other: HeadProfile) -> bool:
    assert one.weights is not None
    assert other.weights is not None
    assert one.centroids is not None
    assert other.centroids is not None
    return torch.equal(one.weights, other.weights) and torch.equal(one.centroids, other.centroids)


def plain() -> list[Tensor]:
    module = Module()
    trainer().validate(module, loader(), verbose=False)
    return module.seen


def equal(one: list[Tensor], other: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


# ProfileCalibration

SETTINGS = [{}, {"method": "evidence", "fit": "signed", "layers": [0, 1]}, {"method": "utility", "stretch": 8}]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_profile_is_that_of_the_plain_way(settings: dict[str, Any], stage: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.safetensors"
    callback, module = ProfileCalibration(path, types=PLACE, data="six batches", **settings), Module()
    getattr(trainer(callback), stage)(module, loader())
    assert callback.profile is not None
    calibrator = ProfileCalibrator(Module().model.eval(), types=PLACE, **settings)
    for batch in batches():
        inputs = batch["inputs"]
        if settings.get("method") == "utility":
            inputs = append_answers(inputs, ANSWERS, Tokenizer(), batch["keys"])
        calibrator.update({**batch, "inputs": inputs})
    wanted = calibrator.profile("mine", "six batches")
    for found in (callback.profile, HeadProfile.load(path)):
        assert same(found, wanted)
        assert (found.name, found.metadata, found.bandwidth) == ("mine", wanted.metadata, wanted.bandwidth)
    assert all(equal(module.seen, plain()))  # the steps ran as ever


def test_labels_given_beforehand_are_taken(tmp_path: Path) -> None:
    data = [
        {**batch, "inputs": append_answers(batch["inputs"], ANSWERS, Tokenizer(), batch["keys"]), "answers": ["", ""]}
        for batch in batches()
    ]
    given, made = (ProfileCalibration(tmp_path / name, method="utility", stretch=8, types=PLACE) for name in "ab")
    trainer(given).validate(Module(), loader(data), verbose=False)
    trainer(made).validate(Module(), loader(), verbose=False)
    assert given.profile is not None
    assert made.profile is not None
    assert same(given.profile, made.profile)


FAMILY_NAMES = {"semantic": "semantic", "acoustic": "acoustic"}


@pytest.mark.parametrize(
    ("tasks", "types", "kinds"),
    [
        (["transcription", "mmau-pro-music"], PLACE, ["semantic", "sound"]),
        (["question", "voice"], FAMILY_NAMES, ["semantic", "acoustic"]),
        (["voice", "sound"], {**FAMILY_NAMES, "voice": "acoustic"}, ["voice", "acoustic"]),
    ],
)
def test_types_are_those_of_the_tasks(tasks: list[str], types: Any, kinds: list[str], tmp_path: Path) -> None:
    data = [{name: value for name, value in batch.items() if name != "types"} for batch in batches()]
    speech = {**batches()[0], "types": ["semantic", "semantic"], "task_names": ["sound", "sound"]}  # their own stay
    found = []
    for name, more in (("a", {"task_names": tasks}), ("b", {"types": kinds})):
        callback = ProfileCalibration(tmp_path / name, types=types)
        trainer(callback).validate(Module(), loader([{**batch, **more} for batch in data] + [speech]), verbose=False)
        assert callback.profile is not None
        found.append(callback.profile)
    assert same(*found)
    assert found[0].metadata == found[1].metadata


def test_batches_of_the_data_modules(tmp_path: Path) -> None:
    """Whose tasks have types, and which may be without audio that can be used."""
    processor = tiny_pocket.make_processor()
    tasks = ("question", "voice", "sound")
    records = [AudioPrompt(tiny_pocket.noise(i, 1), "w40 w41", "w9", f"{i}", tasks[i % 3]) for i in range(6)]
    records.insert(3, AudioPrompt(tiny_pocket.noise(0, 1) * 0, "w40", "w9", "silent", "sound"))
    data = AudioPromptDataModule(processor, predict=records, batch_size=1, on_bad_audio="report")
    for method in ("selectivity", "utility"):
        callback = ProfileCalibration(tmp_path / method, method=method, stretch=5)
        module = LALMModule(tiny_pocket.build(), processor, generate={"max_new_tokens": 1})
        trainer(callback).predict(module, datamodule=data)
        assert callback.profile is not None
        assert callback.profile.metadata["samples"] == '{"semantic": 2, "sound": 2, "voice": 2}'


def test_nothing_is_measured_in_fit(tmp_path: Path) -> None:
    callback = ProfileCalibration(tmp_path / "mine.safetensors", types=PLACE)
    with pytest.warns(UserWarning, match="measures nothing in fit"):
        trainer(callback, num_sanity_val_steps=1).fit(Module(), loader(), loader())
    assert callback.profile is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_sharded_weights_are_refused(strategy: Any, tmp_path: Path) -> None:
    """Processes that run different parts of the model would wait for each other."""
    for_all: Any = SimpleNamespace(strategy=strategy(), state=SimpleNamespace(fn="validate"), is_global_zero=False)
    callback = ProfileCalibration(tmp_path / "mine.safetensors", types=PLACE)
    with pytest.raises(ConfigurationError, match=f"under {strategy.__name__} the processes"):
        callback._on_stage_start(for_all, Module(), "validate")


def test_runs_start_anew(tmp_path: Path) -> None:
    callback = ProfileCalibration(tmp_path / "mine.safetensors", types=PLACE)
    for _ in range(2):
        trainer(callback).validate(Module(), loader(), verbose=False)
        assert callback.profile is not None
        assert callback.profile.metadata["samples"] == '{"semantic": 6, "sound": 6}'


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"types": ["sound", "noise"]}, {}, "0/b: type 'noise' is none of semantic, sound"),
        ({"types": None}, {}, "'inputs' and 'types'"),
        ({"types": None, "task_names": ["question", ""]}, {}, "0/b: it has neither a type nor a task"),
        ({"types": None, "task_names": ["question", "askr"]}, {}, "Unknown task 'askr'"),
        (
            {"types": None, "task_names": ["question", "voice"], "keys": None},
            {},
            "batch 0, sample 1: its task 'voice' is of type 'voice' and family 'acoustic', neither of which is among "
            "the types semantic, sound. Name one of the two in types",
        ),
        ({"evidence": [[(2, 6)], [(0, 10)]]}, {"method": "evidence"}, r"0/b: evidence \(0, 10\) is outside the audio"),
        ({"answers": ["abc", ""]}, {"method": "utility"}, "0/b: the answer is empty"),
        ({"answers": None}, {"method": "utility"}, r"batch 0: the method 'utility' reads inputs\['labels'\]"),
    ],
)
def test_bad_batches_are_named(change: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    batch = {name: value for name, value in {**batches()[0], **change}.items() if value is not None}
    callback = ProfileCalibration(tmp_path / "mine.safetensors", types=PLACE, **settings)
    module = Module()
    with pytest.raises(HeadRouterError, match=message):
        trainer(callback).validate(module, loader([batch]), verbose=False)
    assert not list(tmp_path.iterdir())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.model.modules())


def test_answers_need_a_tokenizer(tmp_path: Path) -> None:
    callback = ProfileCalibration(tmp_path / "mine.safetensors", types=PLACE, method="utility")
    with pytest.raises(HeadRouterError, match="needs a tokenizer for the answers"):
        trainer(callback).validate(Module(processor=object()), loader(), verbose=False)


def test_one_type_alone_writes_nothing(tmp_path: Path) -> None:
    data = [{**batch, "types": ["sound", "sound"]} for batch in batches()]
    callback = ProfileCalibration(tmp_path / "mine.safetensors", types=PLACE)
    with pytest.raises(HeadRouterError, match="every type, got: semantic 0, sound 12"):
        trainer(callback).validate(Module(), loader(data), verbose=False)
    assert not list(tmp_path.iterdir())


def test_settings_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'utility'"):
        ProfileCalibration(tmp_path / "x", method="utilty")
    with pytest.raises(ConfigurationError, match="would be ignored"):
        ProfileCalibration(tmp_path / "x", fit="signed")


def test_a_path_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    module = Module()
    with pytest.raises(ConfigurationError, match=f"{tmp_path} is a folder"):
        trainer(ProfileCalibration(tmp_path, types=PLACE)).validate(module, loader(), verbose=False)
    assert not module.seen


def test_a_pruner_beside_it_is_refused(tmp_path: Path) -> None:
    callbacks = (HeadRouterCallback(0.5), ProfileCalibration(tmp_path / "x", types=PLACE))
    with pytest.raises(HeadRouterError, match="HeadRouterCallback prunes validate"):
        trainer(*callbacks).validate(Module(), loader(), verbose=False)


class Stopped(Exception):  # noqa: N818
    pass


def measured_batches(run: Any, count: int = 99) -> list[str]:
    """First keys of the batches that a run measures, until the one after so many."""
    plain, seen = ProfileCalibrator.update, []

    def update(self: ProfileCalibrator, batch: Any, name: str = "batch") -> None:
        if len(seen) == count:
            raise Stopped
        seen.append(batch["keys"][0])
        plain(self, batch, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProfileCalibrator, "update", update)
        with suppress(Stopped):
            run()
    return seen


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_stopped_run_goes_on(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_calibration, "SAVE_SECONDS", 0.0)
    state, path = tmp_path / "new" / "state", tmp_path / "mine.safetensors"
    empty = {"inputs": {}, "keys": []}  # counts as measured
    data = [*batches()[:2], empty, *batches()[2:]]

    def calibration() -> ProfileCalibration:
        return ProfileCalibration(path, types=PLACE, data="six", state=state, **settings)

    class Steps(Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if batch["inputs"]:
                super().validation_step(batch, batch_idx)

    stopped = measured_batches(lambda: trainer(calibration()).validate(Steps(), loader(data), verbose=False), 3)
    assert stopped == ["0/a", "1/a", "2/a"]
    assert [file.name for file in state.parent.iterdir()] == ["state.0"]
    assert not path.exists()
    callback, module = calibration(), Steps()
    rest = measured_batches(lambda: trainer(callback).validate(module, loader(data), verbose=False))
    assert rest == ["3/a", "4/a", "5/a"]
    assert len(module.seen) == 6
    whole = ProfileCalibration(tmp_path / "whole", name="mine", types=PLACE, data="six", **settings)
    trainer(whole).validate(Steps(), loader(data), verbose=False)
    assert callback.profile is not None
    assert whole.profile is not None
    assert same(callback.profile, whole.profile)
    assert callback.profile.metadata == whole.profile.metadata
    assert not list(state.parent.iterdir())
    again = measured_batches(lambda: trainer(callback).validate(Steps(), loader(data), verbose=False))
    assert len(again) == 6  # the profile is there: the next run is another


def test_a_run_that_cannot_save_is_not_lost(tmp_path: Path) -> None:
    callback = ProfileCalibration(tmp_path / "mine.safetensors", types=PLACE, state=tmp_path / "state")

    def full(self: HeadProfile, path: Path) -> None:
        raise HeadRouterError("No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadProfile, "save", full)
        with pytest.raises(HeadRouterError, match="No space"):
            trainer(callback).validate(Module(), loader(), verbose=False)
    with pytest.warns(UserWarning, match=r"state\.0 held all 6 batches already: none was measured"):
        assert measured_batches(lambda: trainer(callback).validate(Module(), loader(), verbose=False)) == []
    assert [file.name for file in tmp_path.iterdir()] == ["mine.safetensors"]
    assert HeadProfile.load(tmp_path / "mine.safetensors").metadata["samples"] == '{"semantic": 6, "sound": 6}'


@pytest.mark.parametrize("error", [HeadRouterError, KeyboardInterrupt])
def test_what_was_measured_before_an_error_is_kept(error: type[BaseException], tmp_path: Path) -> None:
    """In the third batch, while it is measured or in the module's step after that."""

    def calibration(**settings: Any) -> ProfileCalibration:
        return ProfileCalibration(tmp_path / "mine.safetensors", types=PLACE, state=tmp_path / "state", **settings)

    class Fails(Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise error

    plain = ProfileCalibrator.update

    def update(self: ProfileCalibrator, batch: Any, name: str = "batch") -> None:
        if batch["keys"][0] == "3/a":
            raise error
        plain(self, batch, name)

    def stopped(module: Module) -> None:
        with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
            trainer(calibration()).validate(module, loader(), verbose=False)

    assert measured_batches(lambda: stopped(Fails())) == ["0/a", "1/a", "2/a"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProfileCalibrator, "update", update)
        stopped(Module())  # before it, what it has measured is in the file already
    rest = measured_batches(lambda: trainer(calibration()).validate(Module(), loader(), verbose=False))
    assert rest == ["3/a", "4/a", "5/a"]
    assert HeadProfile.load(tmp_path / "mine.safetensors").metadata["samples"] == '{"semantic": 6, "sound": 6}'


def test_an_error_is_told_even_where_the_state_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: ProfileCalibrator, *_: Any) -> None:
        raise HeadRouterError("No space left on device")

    monkeypatch.setattr(ProfileCalibrator, "save_state", full)
    callback = ProfileCalibration(tmp_path / "mine.safetensors", types=PLACE, state=tmp_path / "state")
    data = [batches()[0], {**batches()[1], "types": ["sound", "noise"]}]
    with (
        pytest.warns(UserWarning, match="what was measured is not kept: No space"),
        pytest.raises(HeadRouterError, match="1/b: type 'noise'"),
    ):
        trainer(callback).validate(Module(), loader(data), verbose=False)


def test_the_state_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_calibration, "SAVE_SECONDS", 0.0)

    def calibration(**settings: Any) -> ProfileCalibration:
        return ProfileCalibration(tmp_path / "x", **{"types": PLACE, "state": tmp_path / "state", **settings})

    measured_batches(lambda: trainer(calibration()).validate(Module(), loader(), verbose=False), 2)
    for other, message in ((calibration(data="more"), "data"), (calibration(queries="last"), "queries")):
        with pytest.raises(HeadRouterError, match=rf"state\.0 is the state of another calibration: other {message}\."):
            trainer(other).validate(Module(), loader(), verbose=False)
    with pytest.raises(HeadRouterError, match=r"other data\. Remove it"):
        trainer(calibration()).test(Module(), loader(), verbose=False)
    of_two: Any = SimpleNamespace(strategy=None, state=SimpleNamespace(fn="validate"), is_global_zero=True,
                                  callbacks=[], global_rank=0, world_size=2)  # fmt: skip
    with pytest.raises(HeadRouterError, match=r"other data\. Remove it"):
        calibration()._on_stage_start(of_two, Module(), "validate")
    with pytest.raises(HeadRouterError, match=r"state\.0 is the state of 2 batches, and there were 1: of other data"):
        trainer(calibration()).validate(Module(), loader(batches()[:1]), verbose=False)
    trainer(calibration()).validate(Module(), loader(), verbose=False)
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


# profile="self"


def measured_by_hand(count: int) -> HeadProfile:
    """Selectivity of the first batches, their types told by the prompts."""
    handle = find_lalm(Module().model)
    router = PromptRouter.default()
    sums = CalibrationSums({str(name): router.families_[name] for name in router.types_}, tiny.HEADS)
    for batch in batches()[:count]:
        measured = measure_attention(handle, batch["inputs"], Probe(layers=(2,)))
        assert measured is not None
        for row, ids in enumerate(batch["inputs"]["input_ids"]):
            sums.add(kind_of(int(ids[-1])), measured.attention[row, :, measured.audio_mask[row]])
    return sums.profile("self", probe=Probe(layers=(2,)), metadata={}, share=True)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_self_measures_then_prunes(stage: str) -> None:
    callback, module = HeadRouterCallback(0.3, profile="self", calibration_batches=2), Module()
    reports: list[tuple[str, list[int]]] = []

    class Watch(L.Callback):
        def look(self, *_: Any) -> None:
            report = callback.report
            assert report.profile is not None
            reports.append((report.profile.metadata["method"], [len(sample.kept) for sample in report.samples]))

        on_validation_batch_end = on_test_batch_end = on_predict_batch_end = look

    getattr(trainer(callback, Watch()), stage)(module, loader())
    profile, wanted = callback.calibrated[stage], measured_by_hand(2)
    assert same(profile, wanted)
    assert profile.bandwidth == wanted.bandwidth
    assert profile.metadata["samples"] == '{"semantic": 2, "sound": 2, "voice": 0}'
    # The first two batches unpruned, bit by bit; the others as by hand with that profile.
    untouched = plain()
    assert equal(module.seen, untouched) == [True, True, False, False, False, False]
    with torch.no_grad(), AudioTokenPruner(0.3, profile=profile, tokenizer=Tokenizer())(module.model) as report:
        pruned = [module.model(**batch["inputs"], use_cache=False).logits for batch in batches()[2:]]
    assert all(equal(module.seen[2:], pruned))
    # What is said of it.
    first, rest = reports[:2], reports[2:]
    assert first == [("nothing pruned yet", clips) for clips in ([20, 9], [12, 7])]
    assert rest == [("selectivity of the first batches", [round(0.3 * n) for clip in row for n in clip])
                    for row in CLIPS[2:]]  # fmt: skip
    totals = callback.totals[stage]
    assert totals["unpruned_batches"] == 2
    assert totals["samples"] == 12
    assert totals["audio_tokens_kept"] == 48 + sum(len(sample.kept) for sample in report.samples)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.model.modules())


def test_self_is_deterministic_and_anew_in_each_run() -> None:
    callback, module = HeadRouterCallback(0.3, profile="self", calibration_batches=3), Module()
    made = trainer(callback)
    made.validate(module, loader(), verbose=False)
    first = callback.calibrated["validate"]
    made.validate(module, loader(), verbose=False)
    assert same(callback.calibrated["validate"], first)
    assert callback.calibrated["validate"] is not first
    assert all(equal(module.seen[:6], module.seen[6:]))
    made.validate(module, loader(batches()[3:]), verbose=False)
    assert not same(callback.calibrated["validate"], first)


def test_self_for_models_in_turn() -> None:
    callback, deeper = HeadRouterCallback(0.3, profile="self", calibration_batches=2), Module()
    deeper.model = tiny.build(FAMILY, num_layers=5, seed=1)
    for module, layers in ((Module(), "4"), (deeper, "5"), (Module(), "4")):
        trainer(callback).validate(module, loader(), verbose=False)
        assert callback.calibrated["validate"].metadata["num_layers"] == layers


def test_self_is_logged() -> None:
    made = trainer(HeadRouterCallback(0.3, profile="self", calibration_batches=2))
    made.validate(Module(), loader(), verbose=False)
    assert made.callback_metrics["headrouter/unpruned_batches"] == 2


def test_self_in_fit_and_its_validation() -> None:
    """Each stage has its own first batches."""
    callback, module = (
        HeadRouterCallback(0.3, profile="self", calibration_batches=2, stages=("fit", "validate")),
        Module(),
    )
    trainer(callback, val_check_interval=3, num_sanity_val_steps=2).fit(module, loader(), loader())
    assert set(callback.calibrated) == {"fit", "validate"}
    assert same(callback.calibrated["validate"], measured_by_hand(2))
    assert callback.totals["fit"]["unpruned_batches"] == callback.totals["validate"]["unpruned_batches"] == 2
    assert callback.totals["fit"]["samples"] == callback.totals["validate"]["samples"] == 12
    untouched = plain()
    sanity, once, again = module.seen[:2], module.seen[2:8], module.seen[8:]
    assert equal(sanity, untouched[:2]) == [True, True]
    for epoch in (once, again):
        assert equal(epoch, untouched) == [True, True, False, False, False, False]


def test_self_with_fewer_batches_than_it_wants() -> None:
    callback, module = HeadRouterCallback(0.3, profile="self"), Module()
    with pytest.warns(UserWarning, match="validate has 6 batches, and calibration_batches is 8, so none was pruned"):
        trainer(callback).validate(module, loader(), verbose=False)
    assert all(equal(module.seen, plain()))
    assert same(callback.calibrated["validate"], measured_by_hand(6))


def test_self_without_audio_in_its_batches() -> None:
    silent = {"inputs": tiny.inputs(FAMILY, tiny.build(FAMILY), [[], []], seed=9)}
    callback, module = HeadRouterCallback(0.3, profile="self", calibration_batches=1), Module()
    with pytest.warns(UserWarning, match="hold no audio, so the others are pruned by the profile 'generic'"):
        trainer(callback).validate(module, loader([silent, *batches()]), verbose=False)
    assert callback.report.profile is HeadProfile.load("generic")
    assert callback.totals["validate"]["audio_tokens_kept"] < callback.totals["validate"]["audio_tokens_seen"]


def test_self_with_a_router_of_other_types() -> None:
    classifier = PromptRouter(families={"words": "semantic", "noise": "acoustic"}).fit(
        [*PROMPTS.values(), "What is said?", "Which noise is it?"], ["words", "noise", "words", "noise"]
    )
    callback = HeadRouterCallback(0.3, profile="self", calibration_batches=2, router=classifier)
    trainer(callback).validate(Module(), loader(), verbose=False)
    profile = callback.calibrated["validate"]
    assert (profile.types, profile.families) == (("noise", "words"), ("acoustic", "semantic"))
    assert profile.metadata["samples"] == '{"noise": 2, "words": 2}'


def test_self_refuses() -> None:
    for options, message in (
        ({"profile": "self", "scorer": "fastv"}, "settings of the scorer named 'headrouter'"),
        ({"profile": "self", "calibration_batches": 0}, "calibration_batches must be at least 1, got 0"),
        ({"calibration_batches": 4}, "is for profile='self', and would be ignored with profile='auto'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            HeadRouterCallback(**options)  # type: ignore[arg-type]
    for router in ("joint", SelectivityRouter()):
        module = Module(processor=object())
        callback = HeadRouterCallback(0.3, profile="self", router=router)
        with pytest.raises(HeadRouterError, match="no tokenizer to read them"):
            trainer(callback).validate(module, loader(), verbose=False)
        assert "generate" not in vars(module.model)
    module = Module()
    with torch.no_grad():
        tiny.layers(FAMILY, module.model)[1].self_attn.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(HeadRouterError, match=r"a sample with the prompt 'Transcribe the speech\.': attention is NaN"):
        trainer(HeadRouterCallback(0.3, profile="self")).validate(module, loader(), verbose=False)


# Two processes


class Logging(Module):
    """Sums a metric over the processes, after a calibration that one of them must not be waiting in."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("steps", float(batch_idx), on_epoch=True, sync_dist=True, batch_size=1)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)


class Stream(IterableDataset[Any]):
    def __init__(self, data: DataLoader[Any]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


def calibrate_both(devices: int, folder: Path) -> dict[str, Any]:
    """What each process has at the end; with two of them, one has three batches and the other two."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    data = batches()[:5]
    mine = loader(data if devices == 1 else [data[:3], data[3:]][rank])
    settings: dict[str, Any] = {"types": PLACE, "method": "evidence", "fit": "signed"}
    own = ProfileCalibration(folder / "mine.safetensors", state=folder / "state", **settings)
    if devices > 1:  # as if it had been stopped
        before = ProfileCalibrator(Module().model.eval(), **settings)
        before.update(next(iter(mine)))
        before.save_state(folder / f"state.{rank}", 1, f" (predict, process {rank} of 2)")
    options = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "use_distributed_sampler": False}
    trainer(own, **options).predict(Module(), mine, return_predictions=False)
    found, unpruned = {}, {}
    # As many batches as the one process has and more than the other; then without a length to know that from.
    order = mine if devices > 1 else loader([data[index] for index in (0, 1, 3, 4, 2)])
    for stage in ("validate", "test", "predict"):
        itself = HeadRouterCallback(0.3, profile="self", calibration_batches=3 if devices > 1 else 4)
        getattr(trainer(itself, **options), stage)(Logging(), order)
        found[stage], unpruned[stage] = itself.calibrated[stage], itself.totals[stage]["unpruned_batches"]
    itself = HeadRouterCallback(0.3, profile="self", calibration_batches=3 if devices > 1 else 5)
    trainer(itself, **options).predict(Module(), DataLoader(Stream(mine), batch_size=None))
    found["stream"], unpruned["stream"] = itself.calibrated["predict"], itself.totals["predict"]["unpruned_batches"]
    assert own.profile is not None
    numbers = {}
    for name, profile in {**found, "own": own.profile}.items():
        assert profile.weights is not None
        assert profile.centroids is not None
        numbers[name] = [
            profile.weights.tolist(),
            profile.centroids.tolist(),
            profile.bandwidth,
            profile.metadata["samples"],
        ]
    return {"found": numbers, "unpruned": unpruned}


DDP = """
import json, os, sys
from pathlib import Path

sys.path[:0] = PATH
import test_profile_calibration

if __name__ == "__main__":
    done = test_profile_calibration.calibrate_both(2, Path("."))
    Path(f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(done))
"""


def test_two_processes_agree(tmp_path: Path) -> None:
    first, second = run_two(DDP, __file__, tmp_path)
    assert first == second
    assert not list(tmp_path.glob("state*"))
    alone = calibrate_both(1, tmp_path / "alone")
    assert first["unpruned"] == alone["unpruned"] == {"validate": 4, "test": 4, "predict": 4, "stream": 5}
    for name, (weights, centroids, bandwidth, samples) in alone["found"].items():
        got = first["found"][name]
        assert torch.tensor(got[0]).flatten().tolist() == pytest.approx(
            torch.tensor(weights).flatten().tolist(), abs=1e-5
        )
        assert torch.tensor(got[1]).flatten().tolist() == pytest.approx(
            torch.tensor(centroids).flatten().tolist(), abs=1e-6
        )
        assert got[2] == pytest.approx(bandwidth, rel=1e-5)
        assert got[3] == samples
