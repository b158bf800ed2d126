"""HeadRouterCallback in real Trainers, over tiny models held in different ways."""

from __future__ import annotations

import csv
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from two_processes import run_two

from headrouter_pl import AudioTokenPruner, HeadProfile, HeadRouterCallback, PromptRouter
from headrouter_pl.errors import ConfigurationError, HeadRouterError, UnknownNameError, UnsupportedModelError
from headrouter_pl.pruning import caches as pruning_caches
from headrouter_pl.pruning import generation
from headrouter_pl.routers import SelectivityRouter
from headrouter_pl.scorers import FastVScorer, HeadRouterScorer, RandomScorer, ScoringInputs, StrideScorer

torch.set_num_threads(1)

FAMILY = "audioflamingo3"
RATIO = 0.3
NEW_TOKENS = 5
# Three batches of one, two and three samples; the second has a sample with two clips.
CLIPS = [[[20]], [[9, 14], [30]], [[12], [7], [25]]]
TEXT_AFTER = 6
PROMPTS = ("Transcribe the speech.", "What sound can be heard in the background?")
LOGGED = {"samples", "audio_tokens_seen", "audio_tokens_kept", "kv_bytes_held", "kv_bytes_saved", "keep_ratio",
          "flops_ratio", "p_semantic"}  # fmt: skip


class StubTokenizer:
    """Reads one of two questions out of any ids."""

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        return [PROMPTS[int(sum(ids)) % 2] for ids in sequences]


@cache
def batches() -> list[dict[str, Tensor]]:
    model = tiny.build(FAMILY)
    made = [tiny.inputs(FAMILY, model, clips, seed=seed) for seed, clips in enumerate(CLIPS)]
    for batch in made:
        labels = torch.full_like(batch["input_ids"], -100)
        labels[:, -2:] = batch["input_ids"][:, -2:]
        batch["labels"] = labels
    return made


def loader(data: list[dict[str, Tensor]] | None = None) -> DataLoader[Any]:
    return DataLoader(batches() if data is None else data, batch_size=None)


def without_audio() -> dict[str, Tensor]:
    return tiny.inputs(FAMILY, tiny.build(FAMILY), [[], []], seed=9)


# Modules: three ways to hold the model, two ways to use it.


def bare() -> tuple[nn.Module, nn.Module]:
    model = tiny.build(FAMILY)
    return model, model


def nested() -> tuple[nn.Module, nn.Module]:
    model = tiny.build(FAMILY)
    return model, nn.ModuleList([nn.Linear(2, 2), nn.ModuleDict({"lalm": nn.ModuleList([model])})])


def wrapped() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny.build(FAMILY), config)
    return model, model


def generate(model: Any, batch: dict[str, Tensor]) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    output = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return torch.stack(output.logits, 1)


def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


Step = Callable[[Any, dict[str, Tensor]], Tensor]
STEPS = (generate, loss)


class Module(L.LightningModule):
    """Any model, any step; remembers what its steps gave, by stage."""

    def __init__(self, model: nn.Module, held: nn.Module, step: Step = loss, processor: Any = None) -> None:
        super().__init__()
        self.held = held
        self._model = [model]  # out of nn.Module's sight
        self.step = step
        self.processor = StubTokenizer() if processor is None else processor
        self.seen: dict[str, list[Tensor]] = {stage: [] for stage in ("fit", "validate", "test", "predict")}

    @property
    def model(self) -> Any:
        return self._model[0]

    def _run(self, stage: str, batch: dict[str, Tensor]) -> Tensor:
        output = self.step(self.model, batch)
        self.seen[stage].append(output.detach().clone())
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._run("fit", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._run("validate", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._run("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._run("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)  # every step sees the same weights


def make(hold: Callable[[], tuple[nn.Module, nn.Module]] = bare, step: Step = loss, **options: Any) -> Module:
    return Module(*hold(), step, **options)


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "max_epochs": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **{**settings, **options})


def run(callback: HeadRouterCallback, module: Module, stage: str, data: Any = None, **options: Any) -> L.Trainer:
    made = trainer(callback, **options)
    getattr(made, stage)(module, loader(data))
    return made


def by_hand(
    module: Module, pruner: AudioTokenPruner | None, data: list[dict[str, Tensor]] | None = None
) -> list[Tensor]:
    """What the steps give without a Trainer."""
    data = batches() if data is None else data
    with torch.no_grad():
        if pruner is None:
            return [module.step(module.model, batch) for batch in data]
        with pruner(module.model):
            return [module.step(module.model, batch) for batch in data]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs",
         "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks")  # fmt: skip


def traces(model: nn.Module) -> dict[str, Any]:
    """Everything a pruner could leave behind on a model."""
    return {
        "hooks": {(name, kind): list(getattr(part, kind)) for name, part in model.named_modules() for kind in HOOKS},
        "own": {name: sorted(vars(part)) for name, part in model.named_modules()},
        "forward": {name: getattr(part.forward, "__func__", part.forward) for name, part in model.named_modules()},
        "state": list(model.state_dict()),
    }


@pytest.fixture(autouse=True)
def _no_forward_left() -> Iterator[None]:
    yield
    assert pruning_caches.FORWARD.get() is None
    assert generation.PROMPT_LENGTH.get() is None


# The numbers, counted from the clips alone.


def expected(*, labels: bool = True) -> dict[str, float]:
    """Logged values of one pass over :func:`batches`, by arithmetic on the clip lengths."""
    layers, prune_layer, kv_width = 4, 3, 2 * tiny.KV_HEADS * tiny.HEAD_DIM * 4  # keys and values, float32
    hidden, key_dim = tiny.HIDDEN, tiny.KV_HEADS * tiny.HEAD_DIM
    weights = 2 * hidden * hidden + 2 * hidden * key_dim + 3 * hidden * 64

    def flops(tokens: int) -> int:
        return 2 * weights * tokens + 4 * hidden * tokens * (tokens + 1) // 2

    total = dict.fromkeys(("samples", "seen", "kept", "held", "full", "flops", "flops_full"), 0)
    for clips in CLIPS:
        rows = [(3 + 2 * (len(row) - 1) + TEXT_AFTER, sum(row)) for row in clips]
        counts = [max(1, round(RATIO * audio)) for _, audio in rows]
        width = max(text + audio for text, audio in rows)
        narrow = max(text + count for (text, _), count in zip(rows, counts, strict=True))
        total["samples"] += len(rows)
        total["seen"] += sum(audio for _, audio in rows)
        total["kept"] += sum(counts)
        total["full"] += len(rows) * layers * width * kv_width
        total["held"] += len(rows) * (prune_layer * width + (layers - prune_layer) * narrow) * kv_width
        total["flops_full"] += len(rows) * layers * flops(width)
        total["flops"] += len(rows) * (prune_layer * flops(width) + (layers - prune_layer) * flops(narrow))
    end = -2 if labels else None  # tokens with labels are the answer, not the question
    questions = [PROMPTS[int(ids[-TEXT_AFTER:end].sum()) % 2] for batch in batches() for ids in batch["input_ids"]]
    assert len(set(questions)) == 2
    semantic = PromptRouter.default().predict_proba(questions)[:, 1].mean()
    return {
        "headrouter/samples": total["samples"],
        "headrouter/audio_tokens_seen": total["seen"],
        "headrouter/audio_tokens_kept": total["kept"],
        "headrouter/kv_bytes_held": total["held"],
        "headrouter/kv_bytes_saved": total["full"] - total["held"],
        "headrouter/keep_ratio": total["kept"] / total["seen"],
        "headrouter/flops_ratio": total["flops"] / total["flops_full"],
        "headrouter/p_semantic": float(semantic),
    }


def check_metrics(metrics: Any, **options: Any) -> None:
    ours = {name: float(value) for name, value in metrics.items() if name.startswith("headrouter/")}
    assert ours == pytest.approx(expected(**options), rel=1e-6)


class TestPrunes:
    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("hold", [bare, nested, wrapped])
    def test_every_stage_like_the_context_manager(self, hold: Any, step: Step) -> None:
        module = make(hold, step)
        before = traces(module.model)
        unpruned = by_hand(module, None)
        pruned = by_hand(module, AudioTokenPruner(RATIO, tokenizer=StubTokenizer()))
        assert not any(torch.equal(a, b) for a, b in zip(unpruned, pruned, strict=True))
        for stage in ("validate", "test", "predict"):
            callback = HeadRouterCallback(RATIO)
            run(callback, module, stage)
            assert same(module.seen[stage], pruned)
            assert callback.totals[stage]["audio_tokens_seen"] == 117
        assert traces(module.model) == before
        assert same(by_hand(module, None), unpruned)

    def test_ratio_of_one_is_the_model_itself(self) -> None:
        module = make(step=generate)
        run(HeadRouterCallback(1.0), module, "validate")
        assert same(module.seen["validate"], by_hand(module, None))

    def test_keep_tokens_layer_scorer_and_router_reach_the_pruner(self) -> None:
        for settings in ({"keep_tokens": 4}, {"layer": 2}, {"scorer": "stride"}, {"scorer": StrideScorer()},
                         {"router": "selectivity"}, {"profile": "sharp"}, {"scorer": "fastv", "layer": 1}):  # fmt: skip
            given: dict[str, Any] = {**settings} if "keep_tokens" in settings else {"keep_ratio": RATIO, **settings}
            module, callback = make(), HeadRouterCallback(**given)
            run(callback, module, "validate")
            tokenizer = StubTokenizer() if callback.pruner.scorer.needs_prompts else None
            assert same(module.seen["validate"], by_hand(module, AudioTokenPruner(**given, tokenizer=tokenizer)))
            assert callback.report.prefills[-1].layer == settings.get("layer", 3)
            if "keep_tokens" in settings:
                assert callback.totals["validate"]["audio_tokens_kept"] == 4 * 6

    def test_stages_not_named_are_left_alone(self) -> None:
        module, callback = make(), HeadRouterCallback(RATIO, stages=("test",))
        run(callback, module, "validate")
        run(callback, module, "test")
        assert same(module.seen["validate"], by_hand(module, None))
        assert same(module.seen["test"], by_hand(module, AudioTokenPruner(RATIO, tokenizer=StubTokenizer())))

    def test_report_is_of_the_last_batch(self) -> None:
        kept: list[list[int]] = []

        class Look(L.Callback):
            def on_validation_batch_end(self, *args: Any) -> None:
                kept.append([len(sample.kept) for sample in callback.report.samples])

        module, callback = make(), HeadRouterCallback(RATIO)
        trainer(callback, Look()).validate(module, loader(), verbose=False)
        assert kept == [[6], [7, 9], [4, 2, 8]]
        assert [sample.seen for sample in callback.report.samples] == [12, 7, 25]

    def test_one_callback_for_modules_in_turn(self) -> None:
        callback = HeadRouterCallback(RATIO)
        first, second = make(), make(nested, generate)
        for module in (first, second):
            run(callback, module, "validate")
        assert same(second.seen["validate"], by_hand(second, AudioTokenPruner(RATIO, tokenizer=StubTokenizer())))
        assert traces(first.model) == traces(make().model)

    def test_an_unsupported_module_is_refused(self) -> None:
        module = Module(linear := nn.Linear(2, 2), linear)
        with pytest.raises(UnsupportedModelError, match="holds no Hugging Face model"):
            run(HeadRouterCallback(), module, "validate")

    def test_a_setting_that_does_not_fit_leaves_no_trace(self) -> None:
        module = make()
        before = traces(module.model)
        with pytest.raises(HeadRouterError, match="layer=4 is out of range"):
            run(HeadRouterCallback(layer=4), module, "validate")
        assert traces(module.model) == before


class TestLogs:
    @pytest.mark.parametrize("stage", ["validate", "test"])
    def test_sums_and_weighted_ratios(self, stage: str) -> None:
        callback = HeadRouterCallback(RATIO)
        done = run(callback, make(), stage)
        check_metrics(done.callback_metrics)
        assert {name.split("/")[1] for name in done.callback_metrics} == LOGGED
        totals, values = callback.totals[stage], expected()
        for name in ("samples", "audio_tokens_seen", "audio_tokens_kept", "kv_bytes_held", "kv_bytes_saved"):
            assert totals[name] == values[f"headrouter/{name}"]

    def test_to_a_csv_logger(self, tmp_path: Path) -> None:
        logger = CSVLogger(tmp_path, name="", version="")
        run(HeadRouterCallback(RATIO), make(), "validate", logger=logger)
        with (tmp_path / "metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        check_metrics(row)

    def test_the_measured_cache_holds_what_is_logged(self) -> None:
        held = []

        def step(model: Any, batch: dict[str, Tensor]) -> Tensor:
            output = model(**batch, use_cache=True)
            parts = [part for layer in output.past_key_values.layers for part in (layer.keys, layer.values)]
            held.append(sum(part.nbytes for part in parts))
            return output.loss

        done = run(HeadRouterCallback(RATIO), make(step=step), "validate")
        assert sum(held) == done.callback_metrics["headrouter/kv_bytes_held"]
        unpruned = run(HeadRouterCallback(RATIO, stages=("test",)), make(step=step), "validate")
        assert not any(name.startswith("headrouter/") for name in unpruned.callback_metrics)
        assert sum(held[3:]) - sum(held[:3]) == done.callback_metrics["headrouter/kv_bytes_saved"]

    def test_half_precision_does_not_round_the_counts(self) -> None:
        done = run(HeadRouterCallback(RATIO), make(), "validate", precision="bf16-true")
        metrics, values = done.callback_metrics, expected()
        assert metrics["headrouter/audio_tokens_seen"] == 117
        assert metrics["headrouter/keep_ratio"] == pytest.approx(36 / 117, rel=1e-6)
        assert metrics["headrouter/kv_bytes_held"] == values["headrouter/kv_bytes_held"] / 2  # two bytes, not four

    def test_totals_for_predict(self) -> None:
        callback = HeadRouterCallback(RATIO)
        done = run(callback, make(step=generate), "predict")
        values = expected()
        assert callback.totals["predict"]["samples"] == 6
        for name in ("audio_tokens_seen", "audio_tokens_kept", "kv_bytes_held", "kv_bytes_saved"):
            assert callback.totals["predict"][name] == values[f"headrouter/{name}"]
        ratio = callback.totals["predict"]["flops"] / callback.totals["predict"]["flops_unpruned"]
        assert ratio == pytest.approx(values["headrouter/flops_ratio"], rel=1e-12)
        assert not done.callback_metrics

    def test_totals_start_anew_with_each_run(self) -> None:
        callback, module = HeadRouterCallback(RATIO), make()
        for _ in range(2):
            check_metrics(run(callback, module, "validate").callback_metrics)
        assert callback.totals["validate"]["samples"] == 6

    def test_not_when_told_not_to(self) -> None:
        callback = HeadRouterCallback(RATIO, log=False)
        assert not run(callback, make(), "validate").callback_metrics
        assert callback.totals["validate"]["audio_tokens_kept"] == 36

    def test_several_dataloaders_in_one_sum(self) -> None:
        module, callback = make(), HeadRouterCallback(RATIO)
        original = Module.validation_step
        Module.validation_step = lambda self, batch, batch_idx, dataloader_idx=0: original(self, batch, batch_idx)
        try:
            made = trainer(callback)
            made.validate(module, [loader(batches()[:1]), loader(batches()[1:])], verbose=False)
        finally:
            Module.validation_step = original
        check_metrics(made.callback_metrics)

    def test_batches_without_audio_pass_through(self) -> None:
        def step(model: Any, batch: dict[str, Tensor]) -> Tensor:
            return model(**{k: v for k, v in batch.items() if k != "labels"}).logits

        data = [without_audio(), *batches(), without_audio()]
        module = make(step=step)
        done = run(HeadRouterCallback(RATIO), module, "validate", data)
        check_metrics(done.callback_metrics, labels=False)
        unpruned = by_hand(module, None, data)
        assert [torch.equal(a, b) for a, b in zip(unpruned, module.seen["validate"], strict=True)] == [
            True, False, False, False, True,
        ]  # fmt: skip

    def test_scores_that_are_no_numbers_warn(self) -> None:
        class Broken(StrideScorer):
            def score(self, inputs: ScoringInputs) -> Tensor:
                scores = super().score(inputs)
                scores[0, 0] = torch.nan
                return scores

        callback = HeadRouterCallback(RATIO, scorer=Broken())
        for stage in ("validate", "predict"):
            with pytest.warns(UserWarning, match=f"{stage}: Broken gave scores that are NaN"):
                run(callback, make(), stage)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*NaN")
            run(HeadRouterCallback(RATIO, scorer="stride"), make(), "validate")

    def test_a_run_without_audio_warns(self) -> None:
        def step(model: Any, batch: dict[str, Tensor]) -> Tensor:
            return model(**batch).logits

        module = make(step=step)
        with pytest.warns(UserWarning, match="saw no audio tokens in validate: nothing was pruned"):
            done = run(HeadRouterCallback(RATIO), module, "validate", [without_audio()])
        assert not done.callback_metrics
        assert same(module.seen["validate"], by_hand(module, None, [without_audio()]))


class TestFit:
    def fit(self, callback: HeadRouterCallback, **options: Any) -> tuple[Module, L.Trainer]:
        module = make()
        made = trainer(callback, **options)
        made.fit(module, loader(), loader())
        return module, made

    @pytest.mark.parametrize(
        ("stages", "pruned"),
        [
            (("validate", "test", "predict"), {"validate"}),
            (("fit",), {"fit"}),
            (("fit", "validate"), {"fit", "validate"}),
            (("predict",), set()),
        ],
    )
    def test_training_and_validation_steps(self, stages: tuple[str, ...], pruned: set[str]) -> None:
        callback = HeadRouterCallback(RATIO, stages=stages)
        # Validation after every training batch: the pruner comes and goes in between.
        module, _ = self.fit(callback, val_check_interval=1, max_epochs=2)
        want = {
            True: by_hand(module, AudioTokenPruner(RATIO, tokenizer=StubTokenizer())),
            False: by_hand(module, None),
        }
        assert same(module.seen["fit"], want["fit" in pruned] * 2)
        assert same(module.seen["validate"], want["validate" in pruned] * 6)
        if "fit" in pruned:
            assert callback.totals["fit"]["audio_tokens_kept"] == 2 * 36
        if "validate" in pruned:
            assert callback.totals["validate"]["audio_tokens_kept"] == 36
        assert traces(module.model) == traces(make().model)

    def test_validation_inside_fit_is_logged(self) -> None:
        _, done = self.fit(HeadRouterCallback(RATIO), max_epochs=2)
        check_metrics(done.callback_metrics)

    def test_sanity_check_is_pruned_and_not_counted(self, tmp_path: Path) -> None:
        module = make()
        callback = HeadRouterCallback(RATIO)
        clean, after = traces(module.model), []

        class Look(L.Callback):
            def on_sanity_check_end(self, made: L.Trainer, module: L.LightningModule) -> None:
                after.append(traces(module.model))

        logger = CSVLogger(tmp_path, name="", version="")
        made = trainer(callback, Look(), num_sanity_val_steps=2, logger=logger)
        made.fit(module, loader(), loader())
        pruned = by_hand(module, AudioTokenPruner(RATIO, tokenizer=StubTokenizer()))
        assert same(module.seen["validate"], pruned[:2] + pruned)
        assert same(module.seen["fit"], by_hand(module, None))
        assert after == [clean]
        check_metrics(made.callback_metrics)
        with (tmp_path / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["headrouter/samples"]]
        assert len(rows) == 1
        check_metrics(rows[0])
        assert callback.totals["validate"]["samples"] == 6

    def test_gradients_of_a_pruned_step(self) -> None:
        """The optimizer gets the gradients of the pruned loss."""
        module = make(wrapped)
        grads: dict[str, Tensor] = {}

        class Look(L.Callback):
            def on_before_optimizer_step(self, made: Any, module: Any, optimizer: Any) -> None:
                grads.update({n: p.grad.clone() for n, p in module.model.named_parameters() if p.grad is not None})

        trainer(HeadRouterCallback(RATIO, stages="fit"), Look(), limit_train_batches=1).fit(module, loader())
        assert grads
        assert all("lora_" in name for name in grads)
        reference = make(wrapped)
        with AudioTokenPruner(RATIO, tokenizer=StubTokenizer())(reference.model):
            loss(reference.model, batches()[0]).backward()
        for name, parameter in reference.model.named_parameters():
            if name in grads:
                torch.testing.assert_close(grads[name], parameter.grad)


class BoomError(Exception):
    """Raised in the middle of a forward."""


class TestExceptions:
    @pytest.fixture(autouse=True)
    def _interruptible(self) -> Iterator[None]:
        handler = signal.getsignal(signal.SIGINT)  # Lightning ignores Ctrl+C for good after the first
        yield
        signal.signal(signal.SIGINT, handler)

    @pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt])
    @pytest.mark.parametrize(
        ("stage", "step"),
        [("fit", loss), *((s, step) for s in ("validate", "test", "predict", "validate in fit") for step in STEPS)],
    )
    def test_leave_no_trace(self, stage: str, step: Step, error: type[BaseException]) -> None:
        module = make(step=step)
        if stage == "validate in fit":
            module.step = lambda model, batch: (loss if module.training else step)(model, batch)
        forwards, during = 0, []

        def explode(*args: Any) -> None:
            nonlocal forwards
            forwards += 1
            if forwards == (5 if stage == "validate in fit" else 2):  # there, three training steps come first
                during.append(traces(module.model))
                raise error

        # Deep inside the pruned layers, where the engine is in the middle of its work.
        hook = tiny.layers(FAMILY, module.model)[3].mlp.register_forward_hook(explode)
        before = traces(module.model)
        callback = HeadRouterCallback(RATIO, stages=("fit", "validate", "test", "predict"))
        made = trainer(callback)
        data = (loader(), loader()) if stage.endswith("fit") else (loader(),)
        with pytest.raises(SystemExit if error is KeyboardInterrupt else BoomError):
            getattr(made, stage.split()[-1])(module, *data)
        assert len(during) == 1
        assert during[0] != before
        assert traces(module.model) == before
        assert pruning_caches.FORWARD.get() is None

        # Callback and module work on.
        hook.remove()
        module.step, module.seen["test"] = loss, []
        run(callback, module, "test")
        assert same(module.seen["test"], by_hand(module, AudioTokenPruner(RATIO, tokenizer=StubTokenizer())))

    def test_error_of_another_callback(self) -> None:
        class Fails(L.Callback):
            def on_validation_batch_end(self, *args: Any) -> None:
                raise BoomError

        module = make()
        before = traces(module.model)
        with pytest.raises(BoomError):
            trainer(HeadRouterCallback(RATIO), Fails()).validate(module, loader())
        assert traces(module.model) == before


class TestCheckpoints:
    def save(self, folder: Path, callback: HeadRouterCallback) -> Path:
        made = trainer(callback, default_root_dir=folder)
        made.fit(make(), loader(), loader())
        made.save_checkpoint(folder / "one.ckpt")
        return folder / "one.ckpt"

    def test_totals_come_back(self, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
        first = HeadRouterCallback(RATIO, stages=("fit", "validate"))
        path = self.save(tmp_path, first)
        again = HeadRouterCallback(RATIO, stages=("fit", "validate"))
        torch.load(path, weights_only=True)  # the state is plain values
        trainer(again, max_epochs=1).fit(make(), loader(), ckpt_path=path)
        assert again.totals["validate"] == first.totals["validate"]
        assert again.totals["validate"]["audio_tokens_kept"] == 36
        assert not [w for w in recwarn if "other settings" in str(w.message)]

    def test_totals_of_this_run_hold(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, HeadRouterCallback(RATIO))
        callback = HeadRouterCallback(RATIO)
        made = trainer(callback)
        made.validate(make(), loader(batches()[:1]), verbose=False)
        before = dict(callback.totals["validate"])
        made.test(make(), loader(), ckpt_path=path, verbose=False)
        assert callback.totals["validate"] == before

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"scorer": "fastv"}, {"scorer": "fastv-norope"}),
            ({"scorer": RandomScorer(0)}, {"scorer": RandomScorer(1)}),
            ({"profile": "generic"}, {"profile": "auto"}),
            ({"profile": "generic"}, {"profile": "sharp"}),
            ({"profile": "generic"}, {"profile": "self"}),
            ({"profile": "self"}, {"profile": "self", "calibration_batches": 3}),
            ({"router": "joint"}, {"router": "prompt"}),
            ({"router": SelectivityRouter()}, {"router": PromptRouter.default()}),
            (
                {"router": PromptRouter().fit(PROMPTS, ["semantic", "acoustic"])},
                {"router": PromptRouter.default()},
            ),
        ],
    )
    def test_settings_tell_pruners_apart(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        def settings(given: dict[str, Any]) -> Any:
            return HeadRouterCallback(RATIO, **given).state_dict()["settings"]

        assert settings(one) == settings(one)
        assert settings(one) != settings(other)

    def test_settings_stay_while_it_runs(self) -> None:
        for given in ({}, {"profile": "self", "calibration_batches": 1}, {"router": "prompt"}):
            callback = HeadRouterCallback(RATIO, **given)
            before = callback.state_dict()["settings"]
            run(callback, make(), "validate")
            assert callback.state_dict()["settings"] == before

    def test_other_stages_are_named(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, HeadRouterCallback(RATIO))
        with pytest.warns(UserWarning, match=r"other settings .*: keep_ratio 0.5 \(was 0.3\), stages \['validate'\]"):
            trainer(HeadRouterCallback(0.5, stages="validate"), max_epochs=1).fit(make(), loader(), ckpt_path=path)

    @pytest.mark.parametrize("first", ["fit", "validate"])
    def test_a_callback_for_each_stage(self, tmp_path: Path, first: str) -> None:
        """They prune each their stage, one after the other, and a checkpoint holds the totals of both."""
        pair = [HeadRouterCallback(0.5, stages=("fit",)), HeadRouterCallback(RATIO, stages=("validate",))]
        made = trainer(*(pair if first == "fit" else pair[::-1]), max_epochs=1)
        made.fit(make(), loader(), loader())
        kept = {one.stages[0]: one.totals[one.stages[0]] for one in pair}
        alone = HeadRouterCallback(RATIO)
        run(alone, make(), "validate")
        same = ("audio_tokens_seen", "audio_tokens_kept")
        assert [kept["validate"][name] for name in same] == [alone.totals["validate"][name] for name in same]
        assert kept["fit"]["audio_tokens_kept"] > kept["validate"]["audio_tokens_kept"]
        with pytest.raises(ConfigurationError, match="Two HeadRouterCallbacks prune validate"):
            trainer(HeadRouterCallback(), HeadRouterCallback(stages=("fit", "validate"))).validate(make(), loader())
        made.save_checkpoint(tmp_path / "both.ckpt")
        again = [HeadRouterCallback(0.5, stages=("fit",)), HeadRouterCallback(RATIO, stages=("validate",))]
        trainer(*again, max_epochs=1).fit(make(), loader(), loader(), ckpt_path=str(tmp_path / "both.ckpt"))
        assert {one.stages[0]: one.totals[one.stages[0]] for one in again} == kept

    def test_other_settings_are_named(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, HeadRouterCallback(RATIO))
        other = HeadRouterCallback(keep_tokens=5, layer=3, scorer="stride")
        with pytest.warns(UserWarning, match="other settings") as caught:
            trainer(other, max_epochs=1).fit(make(), loader(), ckpt_path=path)
        (message,) = [str(w.message) for w in caught if "other settings" in str(w.message)]
        for part in ("keep_ratio None (was 0.3)", "keep_tokens 5 (was None)", "layer 3 (was None)",
                     "scorer 'StrideScorer' (was 'HeadRouterScorer')"):  # fmt: skip
            assert part in message
        assert "stages" not in message
        assert other.pruner.keep_tokens == 5  # what was given holds


class TestTokenizer:
    class Data(L.LightningDataModule):
        def __init__(self, **attributes: Any) -> None:
            super().__init__()
            vars(self).update(attributes)

        def val_dataloader(self) -> DataLoader[Any]:
            return loader()

    def module(self, **attributes: Any) -> Module:
        module = make()
        del module.processor
        vars(module).update(attributes)
        return module

    @pytest.mark.parametrize("name", ["processor", "tokenizer"])
    @pytest.mark.parametrize("owner", ["module", "datamodule"])
    def test_is_found(self, owner: str, name: str) -> None:
        found = {name: StubTokenizer()}
        module = self.module(**(found if owner == "module" else {}))
        made = trainer(HeadRouterCallback(RATIO))
        made.validate(module, datamodule=self.Data(**(found if owner == "datamodule" else {})), verbose=False)
        check_metrics(made.callback_metrics)

    def test_given_one_comes_first(self) -> None:
        class Other(StubTokenizer):
            def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
                return [PROMPTS[0]] * len(sequences)

        done = run(HeadRouterCallback(RATIO, tokenizer=Other()), make(), "validate")
        wanted = PromptRouter.default().predict_proba(PROMPTS[:1])[0, 1]
        assert done.callback_metrics["headrouter/p_semantic"] == pytest.approx(wanted, rel=1e-6)

    def test_none_warns_once(self) -> None:
        callback = HeadRouterCallback(RATIO)
        with pytest.warns(UserWarning, match="No tokenizer") as caught:
            done = run(callback, self.module(), "validate")
        run(callback, self.module(), "test")  # a second warning would be an error, see pyproject.toml
        assert len([w for w in caught if "No tokenizer" in str(w.message)]) == 1
        # Neither prompt nor centroids: every type is as likely, and two of three are acoustic.
        assert done.callback_metrics["headrouter/p_semantic"] == pytest.approx(1 / 3)

    def test_a_processor_of_no_use_is_passed_over(self) -> None:
        with pytest.warns(UserWarning, match="No tokenizer"):
            run(HeadRouterCallback(RATIO), self.module(processor=object()), "validate")

    def test_each_module_its_own(self) -> None:
        class Other(StubTokenizer):
            def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
                return [PROMPTS[1]] * len(sequences)

        callback = HeadRouterCallback(RATIO)
        run(callback, self.module(processor=StubTokenizer()), "validate")
        done = run(callback, self.module(processor=Other()), "validate")
        wanted = PromptRouter.default().predict_proba(PROMPTS[1:])[0, 1]
        assert done.callback_metrics["headrouter/p_semantic"] == pytest.approx(wanted, rel=1e-6)


class TestArguments:
    def test_defaults(self) -> None:
        callback = HeadRouterCallback()
        assert callback.pruner.keep_ratio == 0.7
        assert callback.pruner.keep_tokens is None
        assert isinstance(callback.pruner.scorer, HeadRouterScorer)
        assert callback.stages == ("validate", "test", "predict")
        assert HeadRouterCallback(stages="fit").stages == ("fit",)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"keep_ratio": 0.0}, ConfigurationError, r"keep_ratio must be in \(0, 1\], got 0.0"),
            ({"keep_ratio": 1.1}, ConfigurationError, r"\(0, 1\]"),
            ({"keep_ratio": float("nan")}, ConfigurationError, r"\(0, 1\]"),
            ({"keep_tokens": 0}, ConfigurationError, "at least 1, got 0"),
            ({"keep_ratio": 0.5, "keep_tokens": 3}, ConfigurationError, "not both"),
            ({"layer": 0}, ConfigurationError, "layer must be at least 1"),
            ({"scorer": "headruoter"}, UnknownNameError, "Did you mean 'headrouter'"),
            ({"router": "joined"}, UnknownNameError, "Did you mean 'joint'"),
            ({"profile": "generik"}, UnknownNameError, "Did you mean 'generic'"),
            ({"scorer": "stride", "router": "prompt"}, ConfigurationError, "settings of the scorer named 'headrouter'"),
            ({"stages": ("validation",)}, UnknownNameError, "Did you mean 'validate'"),
            ({"stages": ()}, ConfigurationError, "stages is empty; name at least one of fit, validate, test, predict"),
            ({"tokenizer": object()}, ConfigurationError, "batch_decode, got object"),
        ],
    )
    def test_refused(self, given: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            HeadRouterCallback(**given)


class TestYaml:
    def callback(self, tmp_path: Path, *lines: str) -> HeadRouterCallback:
        config = tmp_path / "config.yaml"
        options = ["accelerator: cpu", "logger: false", "enable_checkpointing: false", "enable_progress_bar: false"]
        text = ["trainer:", *(f"  {line}" for line in options), "  callbacks:"]
        text += ["    - class_path: headrouter_pl.HeadRouterCallback"]
        if lines:
            text += ["      init_args:", *(f"        {line}" for line in lines)]
        config.write_text("\n".join(text))
        cli = LightningCLI(
            BoringModel,
            run=False,
            save_config_callback=None,
            args=["--config", str(config)],
        )
        (found,) = [c for c in cli.trainer.callbacks if isinstance(c, HeadRouterCallback)]
        return found

    def test_defaults(self, tmp_path: Path) -> None:
        assert self.callback(tmp_path).pruner.keep_ratio == 0.7

    def test_plain_values(self, tmp_path: Path) -> None:
        made = self.callback(
            tmp_path, "keep_tokens: 12", "layer: 3", "router: selectivity", "profile: sharp", "stages: [fit, test]",
            "log: false",
        )  # fmt: skip
        assert (made.pruner.keep_ratio, made.pruner.keep_tokens, made.pruner.layer) == (None, 12, 3)
        assert made.stages == ("fit", "test")
        assert isinstance(made.pruner.scorer, HeadRouterScorer)
        assert isinstance(made.pruner.scorer.router, SelectivityRouter)
        assert made.pruner.scorer.profile is HeadProfile.load("sharp")
        assert not made.log_metrics

    def test_objects(self, tmp_path: Path) -> None:
        made = self.callback(
            tmp_path, "keep_ratio: 0.5", "scorer:", "  class_path: headrouter_pl.scorers.FastVScorer",
            "  init_args: {rotary: false}",
        )  # fmt: skip
        assert made.pruner.keep_ratio == 0.5
        scorer = made.pruner.scorer
        assert isinstance(scorer, FastVScorer)
        assert scorer.probe is not None
        assert not scorer.probe.rotary

    def test_a_profile_file(self, tmp_path: Path) -> None:
        profile = HeadProfile("mine", weights=torch.full((3, tiny.HEADS), 1 / tiny.HEADS))
        profile.save(tmp_path / "mine.safetensors")
        made = self.callback(tmp_path, f"profile: {tmp_path / 'mine.safetensors'}")
        assert isinstance(made.pruner.scorer, HeadRouterScorer)
        assert made.pruner.scorer.profile.name == "mine"
        run(made, make(), "validate")  # and it fits the model's four heads


def evaluate(devices: int) -> dict[str, Any]:
    """Metrics and totals of runs over data that divides evenly between two processes."""

    def load(data: list[dict[str, Tensor]]) -> DataLoader[Any]:
        return DataLoader(data, batch_size=1, collate_fn=lambda batch: batch[0])

    callback, module = HeadRouterCallback(RATIO), make(step=generate)
    made = trainer(callback, devices=devices, strategy="ddp" if devices > 1 else "auto")
    results = []
    one, two, three = batches()
    # The second time one of two processes meets no audio at all.
    for data in ([one, two, three, one], [one, without_audio(), three, without_audio()]):
        made.validate(module, load(data), verbose=False)
        results.append([{k: float(v) for k, v in made.callback_metrics.items()}, callback.totals["validate"]])
    made.predict(module, load(data), return_predictions=False)
    results.append(callback.totals["predict"])
    return {"results": results, "steps": [len(module.seen["validate"]), len(module.seen["predict"])]}


DDP = """
import json, os, sys
from pathlib import Path

sys.path[:0] = PATH
import test_head_router

if __name__ == "__main__":
    done = test_head_router.evaluate(2)
    Path(f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(done))
"""


def test_two_processes_add_up(tmp_path: Path) -> None:
    first, second = run_two(DDP, __file__, tmp_path)
    assert first == second
    alone = evaluate(1)
    assert alone["steps"] == [8, 4]
    assert first["steps"] == [4, 2]  # an even split without repeats
    for (metrics, totals), (metrics_alone, totals_alone) in zip(
        first["results"][:2], alone["results"][:2], strict=True
    ):
        assert totals == pytest.approx(totals_alone, rel=1e-6)
        assert set(metrics) == {f"headrouter/{name}" for name in LOGGED}
        assert metrics == pytest.approx(metrics_alone, rel=1e-6)
    assert [metrics["headrouter/audio_tokens_seen"] for metrics, _ in first["results"][:2]] == [117 + 20, 20 + 44]
    assert first["results"][2] == pytest.approx(alone["results"][2], rel=1e-6)
