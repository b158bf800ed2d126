"""LALMModule over a tiny AudioFlamingo3, with a processor that turns ids into words."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
import transformers
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GenerationConfig

from headrouter_pl import AudioTokenPruner, HeadRouterCallback, HeadRouterError, LALMModule
from headrouter_pl.data.bucketing import LengthBucketSampler, ResumableDataLoader
from headrouter_pl.errors import ConfigurationError, UnknownNameError, UnsupportedModelError
from headrouter_pl.lalm_module import _answered_exactly
from headrouter_pl.models.encoded import encode_windows, encoded_audio

torch.set_num_threads(1)

FAMILY = "audioflamingo3"
WORDS = 5
GENERATE = {"max_new_tokens": WORDS}


class StubProcessor:
    """Writes every id as a word of its own."""

    tokenizer = None

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False) -> list[str]:
        return [" ".join(f"w{int(i)}" for i in row) for row in ids]


def make(model: Any = None, processor: Any = None, **options: Any) -> LALMModule:
    model = tiny.build(FAMILY) if model is None else model
    return LALMModule(model, StubProcessor() if processor is None else processor, **{"generate": GENERATE, **options})


def data(answers: list[list[str]] | None = None) -> list[dict[str, Any]]:
    """Two batches, of two samples and of one."""
    model = tiny.build(FAMILY)
    batches = []
    for index, clips in enumerate([[[20], [9, 14]], [[12]]]):
        batches.append(
            {
                "inputs": tiny.inputs(FAMILY, model, clips, seed=index),
                "answers": answers[index] if answers else [""] * len(clips),
                "keys": [f"{index}.{row}" for row in range(len(clips))],
            }
        )
    return batches


def with_labels(batch: dict[str, Any]) -> dict[str, Any]:
    labels = torch.full_like(batch["inputs"]["input_ids"], -100)
    labels[:, -3:] = batch["inputs"]["input_ids"][:, -3:]
    return {**batch, "inputs": {**batch["inputs"], "labels": labels}}


def loader(batches: list[dict[str, Any]]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **{**settings, **options})


def texts() -> list[list[str]]:
    """What the model says, straight from ``generate``."""
    model, said = tiny.build(FAMILY), []
    for batch in data():
        ids = model.generate(**batch["inputs"], max_new_tokens=WORDS, do_sample=False)
        said.append([" ".join(f"w{int(i)}" for i in row[-WORDS:]) for row in ids])
    return said


class TestEvaluation:
    @pytest.mark.parametrize("stage", ["validate", "test"])
    def test_word_error_rate_of_known_answers(self, stage: str) -> None:
        answers = texts()
        answers[0][0] = answers[0][0].upper() + " !"  # case and punctuation do not count
        wrong = answers[0][1].split()
        answers[0][1] = " ".join([*wrong[:2], "other", *wrong[3:]])  # one word in fifteen
        name = {"validate": "val", "test": "test"}[stage]
        (result,) = getattr(trainer(), stage)(make(), loader(data(answers)), verbose=False)
        assert result == {f"{name}/transcription": pytest.approx(1 / (3 * WORDS))}

    def test_scores_are_over_all_dataloaders(self) -> None:
        answers = texts()
        answers[1][0] += " more"
        loaders = [loader([batch]) for batch in data(answers)]
        results = trainer().validate(make(task="question"), loaders, verbose=False)
        assert {name: value for result in results for name, value in result.items()} == {
            "val/question": pytest.approx(2 / 3)
        }
        found = trainer().predict(make(task="question"), [loader([batch]) for batch in data()])
        assert [[record["text"] for record in batches[0]] for batches in found] == texts()  # type: ignore[union-attr, index]

    def test_accuracy_of_known_answers(self) -> None:
        answers = texts()
        answers[0][0] = answers[0][0].upper() + "."
        answers[1][0] += " more"
        (result,) = trainer().validate(make(task="question"), loader(data(answers)), verbose=False)
        assert result == {"val/question": pytest.approx(2 / 3)}

    def test_samples_without_an_answer_are_told_once(self, recwarn: pytest.WarningsRecorder) -> None:
        answers = texts()
        answers[0][1] = ""
        (result,) = trainer().validate(make(task="question"), loader(data(answers)), verbose=False)
        assert result == {"val/question": pytest.approx(2 / 3)}
        assert len([w for w in recwarn if "The sample '0.1' has no answer" in str(w.message)]) == 1

    def test_what_the_callback_prunes_is_what_is_scored(self) -> None:
        model, answers = tiny.build(FAMILY), []
        with AudioTokenPruner(0.3, tokenizer=StubProcessor())(model):
            for batch in data():
                ids = model.generate(**batch["inputs"], max_new_tokens=WORDS, do_sample=False)
                answers.append([" ".join(f"w{int(i)}" for i in row[-WORDS:]) for row in ids])
        assert answers != texts()
        made = trainer(HeadRouterCallback(0.3))
        (result,) = made.validate(make(), loader(data(answers)), verbose=False)
        assert result["val/transcription"] == 0
        assert result["headrouter/audio_tokens_kept"] == 6 + 7 + 4

    def test_predict_gives_records(self) -> None:
        found = trainer().predict(make(task="question"), loader(data()))
        assert found is not None
        keys = iter(["0.0", "0.1", "1.0"])
        want = [[{"key": next(keys), "text": text, "answer": text} for text in batch] for batch in texts()]
        assert found == want

    def test_an_unreadable_answer_is_none(self) -> None:
        found = trainer().predict(make(task="choice"), loader(data()))
        assert found is not None
        assert [record["answer"] for batch in found for record in batch] == [None] * 3

    def test_generate_settings_and_the_tasks_length(self) -> None:
        batch = data()[0]["inputs"]
        assert {len(text.split()) for text in make(generate={"max_new_tokens": 2}).answer(batch)} == {2}
        assert {len(text.split()) for text in make(generate=None, task="choice").answer(batch)} == {8}
        assert make(generate={"do_sample": True}).generate_settings["do_sample"] is True
        assert make(generate={"do_sample": True}).generate_settings["max_new_tokens"] == 256

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"max_length": 3}, 3),  # beside the prompt
            ({"generation_config": GenerationConfig(max_new_tokens=4, eos_token_id=None)}, 4),
            ({"generation_config": GenerationConfig(repetition_penalty=1.1)}, 9),
        ],
    )
    def test_other_ways_to_give_a_length(self, settings: dict[str, Any], words: int) -> None:
        batch = data()[0]["inputs"]
        if "max_length" in settings:
            settings = {"max_length": batch["input_ids"].shape[1] + words}
        assert {len(text.split()) for text in make(generate=settings).answer(batch, [9, 9])} == {words}

    def test_several_answers_a_sample_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="num_return_sequences"):
            make(generate={"generation_config": GenerationConfig(do_sample=True, num_return_sequences=2)})

    def test_answers_without_dropout(self) -> None:
        module = make(lora=LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.9, init_lora_weights=False))
        module.train()
        batch = data()[0]["inputs"]
        assert len({tuple(module.answer(batch)) for _ in range(4)}) == 1
        assert module.model.training

    def test_each_sample_of_a_batch_has_its_tasks_length(self) -> None:
        batch = {**data()[0], "task_names": ["audiomarathon-sed", ""]}
        (rows,) = trainer().predict(make(generate=None, task="choice"), loader([batch])) or [[]]
        assert [len(row["text"].split()) for row in rows] == [5, 8]
        (fixed,) = trainer().predict(make(task="choice", generate={"max_new_tokens": 3}), loader([batch])) or [[]]
        assert [row["text"] for row in fixed] == [" ".join(row["text"].split()[:3]) for row in rows]

    def test_a_batch_without_usable_audio(self) -> None:
        failure = {"key": "x", "task": "", "answer": "yes", "options": [], "error": "x.wav is silent"}
        empty = {"inputs": {}, "keys": [], "answers": [], "failures": [failure]}
        known = data([["other", "other"], ["other"]])
        (result,) = trainer(HeadRouterCallback(0.5)).validate(
            make(task="question"), loader([empty, *known]), verbose=False
        )
        assert result["val/question"] == 0
        assert result["headrouter/samples"] == 3
        assert trainer().predict(make(), loader([empty])) == [
            [{"key": "x", "text": "", "answer": None, "failure": "x.wav is silent"}]
        ]

    def test_labels_do_not_disturb_generation(self) -> None:
        batch = data()[0]
        assert make().answer(with_labels(batch)["inputs"]) == make().answer(batch["inputs"])

    def test_forward_is_the_models(self) -> None:
        module, batch = make(), data()[0]["inputs"]
        with torch.no_grad():
            assert torch.equal(module(**batch).logits, tiny.build(FAMILY)(**batch).logits)


class TestFit:
    def losses(
        self, module: LALMModule, batches: list[dict[str, Any]], **options: Any
    ) -> tuple[list[float], L.Trainer]:
        found: list[float] = []

        class Look(L.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
                found.append(float(outputs["loss"]))

        made = trainer(Look(), *options.pop("callbacks", ()), max_epochs=3, **options)
        made.fit(module, loader(batches))
        return found, made

    def test_lora_lowers_the_loss_and_trains_nothing_else(self) -> None:
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
        torch.manual_seed(0)
        module = make(lora=config, learning_rate=0.02)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        batch = with_labels(data()[0])
        with torch.no_grad():
            unwrapped = float(tiny.build(FAMILY)(**batch["inputs"]).loss)
        losses, made = self.losses(module, [batch])
        assert losses[0] == pytest.approx(unwrapped, rel=1e-5)  # LoRA begins as no change
        assert losses[0] > losses[1] > losses[2]
        assert float(made.callback_metrics["train/loss"]) == pytest.approx(losses[2])
        changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all("lora_" in name for name in changed)
        trained = {id(p) for group in made.optimizers[0].param_groups for p in group["params"]}
        assert trained == {id(p) for name, p in module.named_parameters() if "lora_" in name}
        decoder = [name for name in changed if "language_model" in name]
        assert {re.findall(r"layers\.(\d)", name)[0] for name in decoder} == {"0", "1", "2", "3"}

    def test_without_lora_everything_trains(self) -> None:
        module = make(learning_rate=1e-3, weight_decay=0.1)
        losses, made = self.losses(module, [with_labels(data()[0])])
        assert losses[-1] < losses[0]
        (group,) = made.optimizers[0].param_groups
        assert group["lr"] == 1e-3
        assert group["weight_decay"] == 0.1
        assert len(group["params"]) == sum(p.requires_grad for p in tiny.build(FAMILY).parameters()) > 50

    def test_a_learning_rate_that_is_set_later(self) -> None:
        """As Lightning's learning rate finder does."""
        module = make(learning_rate=1e-3)
        module.learning_rate = 0.5
        (group,) = module.configure_optimizers().param_groups
        assert group["lr"] == 0.5

    def test_pruned_training_steps(self) -> None:
        batch = with_labels(data()[0])
        with torch.no_grad(), AudioTokenPruner(0.3, tokenizer=StubProcessor())(model := tiny.build(FAMILY)):
            want = float(model(**batch["inputs"]).loss)
        callback = HeadRouterCallback(0.3, stages=("fit",))
        losses, _ = self.losses(make(learning_rate=0.0), [batch], callbacks=[callback])
        assert losses == pytest.approx([want] * 3)

    def test_labels_are_needed(self) -> None:
        with pytest.raises(HeadRouterError, match=r"inputs\['labels'\]; AudioPromptDataModule makes them"):
            self.losses(make(), data())


class TestAnswerLoss:
    @pytest.mark.parametrize("family", ["audioflamingo3", "musicflamingo"])
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_loss_and_gradients_are_the_stock_ones(self, family: str, attention: str) -> None:
        rows = tiny.inputs(family, tiny.build(family), [[20], [12]])
        batch = with_labels({"inputs": rows, "answers": ["", ""], "keys": ["a", "b"]})
        batch["inputs"]["labels"][0, 2] = 9  # answers need not stand at the end
        stock = tiny.build(family, attn_implementation=attention)
        want = stock(**batch["inputs"]).loss
        want.backward()
        module = make(tiny.build(family, attn_implementation=attention))
        module.log = lambda *args, **options: None  # type: ignore[method-assign]
        widths: list[torch.Size] = []
        module.model.lm_head.register_forward_hook(lambda module, args, output: widths.append(output.shape))
        loss = module.training_step(batch, 0)
        loss.backward()
        assert [tuple(width) for width in widths] == [(7, tiny.VOCAB)]
        torch.testing.assert_close(loss, want)
        for (name, found), expected in zip(module.model.named_parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")
        with torch.no_grad():
            assert module(**batch["inputs"]).logits.shape[:2] == batch["inputs"]["labels"].shape  # no hook stays


def recipe(**options: Any) -> LALMModule:
    """Everything that the pocket model's training uses."""
    torch.manual_seed(1)
    lora = LoraConfig(r=options.pop("r", 2), lora_alpha=options.pop("alpha", 4), target_modules=["q_proj", "down_proj"])
    settings = {"train_projector": True, "learning_rate": 0.02, "projector_learning_rate": 0.01, "warmup_steps": 2}
    return make(options.pop("model", None), lora=lora, **{**settings, "lr_schedule": "cosine", **options})


def run(module: LALMModule, folder: Path, resume: Path | None = None, steps: int = 4, **options: Any) -> L.Trainer:
    batches = [with_labels(batch) for batch in data()]
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    made = trainer(save, enable_checkpointing=True, max_steps=steps, max_epochs=-1, **options)
    made.fit(module, loader(batches), ckpt_path=resume)
    return made


def trained(module: LALMModule) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


class TestRecipe:
    def test_what_trains_at_which_rate(self, tmp_path: Path) -> None:
        module = recipe()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        made = run(module, tmp_path)
        changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == trained(module).keys()
        assert {name.split(".")[-3] for name in changed if "lora_" not in name} == {"multi_modal_projector"}
        groups = made.optimizers[0].param_groups
        assert {group["initial_lr"]: len(group["params"]) for group in groups} == {
            0.02: sum("lora_" in name for name in changed), 0.01: 4,
        }  # fmt: skip
        assert [group["lr"] for group in groups] == [0, 0]  # cosine, at its last step
        assert recipe(betas=(0.8, 0.9), lr_schedule="constant", warmup_steps=0).configure_optimizers().defaults[
            "betas"
        ] == (0.8, 0.9)

    @pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
    def test_in_half_precision(self, precision: Any) -> None:
        module = recipe()
        before = {name: value.clone() for name, value in trained(module).items()}
        trainer(max_steps=2, precision=precision).fit(module, loader([with_labels(data()[0])]))
        assert any(not torch.equal(value.float(), before[name]) for name, value in trained(module).items()
                   if "multi_modal_projector" in name)  # fmt: skip

    def test_schedules(self, tmp_path: Path) -> None:
        class Rates(L.Callback):
            def __init__(self) -> None:
                self.seen: list[float] = []

            def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
                self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

        found = {}
        for name in ("constant", "cosine"):
            rates = Rates()
            module = recipe(learning_rate=1.0, projector_learning_rate=1.0, lr_schedule=name)
            trainer(rates, max_steps=4, max_epochs=-1).fit(module, loader([with_labels(data()[0])]))
            found[name] = rates.seen
        assert found == {"constant": [0, 0.5, 1, 1], "cosine": [0, 0.5, 1, pytest.approx(0.5)]}
        with pytest.raises(HeadRouterError, match="max_steps"):
            trainer(max_epochs=-1, max_time="00:00:01:00").fit(recipe(), loader([with_labels(data()[0])]))

    def test_resumed_is_uninterrupted(self, tmp_path: Path) -> None:
        whole = recipe()
        run(whole, tmp_path)
        resumed = recipe()
        with torch.no_grad():
            for p in trained(resumed).values():
                p.zero_()
        run(resumed, tmp_path / "again", resume=tmp_path / "step=2.ckpt")
        for name, value in trained(whole).items():
            assert torch.equal(trained(resumed)[name], value), name

    @pytest.mark.parametrize("schedule", ["constant", "cosine"])
    def test_resumed_within_an_epoch(self, tmp_path: Path, schedule: str) -> None:
        """By epochs, not steps: a cosine asks how many batches the loader has."""
        batches = [with_labels(batch) for batch in data() * 3]

        class Seen(L.Callback):
            def __init__(self) -> None:
                self.batches: list[list[int]] = []
                self.rates: list[float] = []

            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
                self.batches.append(batch["chosen"])
                self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def run(resume: Path | None = None) -> Seen:
            seen = Seen()
            save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
            trains = ResumableDataLoader(
                range(len(batches)),  # type: ignore[arg-type]
                batch_sampler=LengthBucketSampler([10] * 6, 10),
                collate_fn=lambda chosen: {**batches[chosen[0]], "chosen": chosen},
            )
            made = trainer(seen, save, enable_checkpointing=True, max_epochs=1)
            made.fit(recipe(lr_schedule=schedule), trains, ckpt_path=resume)
            return seen

        whole, resumed = run(), run(tmp_path / "step=2.ckpt")
        assert sorted(whole.batches) == [[i] for i in range(6)]
        assert resumed.batches == whole.batches[2:]
        assert resumed.rates == whole.rates[2:]

    def test_checkpoints_hold_what_trains(self, tmp_path: Path) -> None:
        module = recipe()
        run(module, tmp_path, steps=1)
        saved = torch.load(tmp_path / "step=1.ckpt", weights_only=True)
        assert saved["state_dict"].keys() == trained(module).keys()
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])
        again = LALMModule.load_from_checkpoint(
            tmp_path / "step=1.ckpt", model=tiny.build(FAMILY), processor=StubProcessor(), lora=config,
            train_projector=True, generate=GENERATE, weights_only=True,
        )  # fmt: skip
        assert again.answer(data()[0]["inputs"]) == module.answer(data()[0]["inputs"])

    def test_a_run_can_begin_with_the_weights_of_another(self, tmp_path: Path) -> None:
        first = recipe()
        run(first, tmp_path, steps=1)
        begun = recipe(initial_checkpoint=str(tmp_path / "step=1.ckpt"))
        for name, value in trained(first).items():
            assert torch.equal(trained(begun)[name], value), name
        with pytest.raises(HeadRouterError, match="of another recipe"):
            recipe(r=4, initial_checkpoint=str(tmp_path / "step=1.ckpt"))

    def test_checkpoints_of_all_weights_hold_all(self, tmp_path: Path) -> None:
        module = make(learning_rate=0.0)
        made = run(module, tmp_path, steps=1)
        made.save_checkpoint(tmp_path / "all.ckpt")
        saved = torch.load(tmp_path / "all.ckpt", weights_only=True)["state_dict"]
        assert saved.keys() == module.state_dict().keys()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"r": 4}, r"lora_A.default.weight is \[2, 48\], not \[4, 48\].* more"),
            ({"alpha": 8}, r"recipe: LoRA's lora_alpha was 4, not 8\."),
            ({"model": "short"}, r"layers\.3\..* is not in this module"),
            ({"model": "long"}, r"layers\.4\..* is missing"),
        ],
    )
    def test_a_checkpoint_of_another_recipe_is_refused(
        self, tmp_path: Path, options: dict[str, Any], message: str
    ) -> None:
        run(recipe(), tmp_path, steps=1)
        layers = {"short": 3, "long": 5}
        if "model" in options:
            options = {"model": tiny.build(FAMILY, num_layers=layers[options["model"]])}
        with pytest.raises(HeadRouterError, match=message):
            run(recipe(**options), tmp_path / "again", resume=tmp_path / "step=1.ckpt")

    def test_bfloat16_weights_under_mixed_precision(self, tmp_path: Path) -> None:
        module = recipe(model=tiny.build(FAMILY, dtype=torch.bfloat16))
        assert {p.dtype for p in trained(module).values()} == {torch.float32}
        assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}
        before = {name: value.clone() for name, value in trained(module).items()}
        run(module, tmp_path, precision="bf16-mixed")
        assert all(not torch.equal(value, before[name]) for name, value in trained(module).items())
        assert {p.dtype for p in trained(module).values()} == {torch.float32}
        assert len(module.answer(data()[0]["inputs"])) == 2  # without autocast too

    def test_encoded_audio(self) -> None:
        batch = data()[1]
        plain = recipe()
        want = plain.answer(batch["inputs"])
        states = encode_windows(plain.model, batch["inputs"]["input_features"], batch["inputs"]["input_features_mask"])
        inputs = {"input_features": states[None], "input_features_mask": torch.ones(1, len(states), dtype=torch.long)}
        module = recipe(encoded_audio=True)
        assert module.answer({**batch["inputs"], **inputs}) == want
        assert not any("audio_tower" in name for name, _ in module.named_parameters())
        assert module.encoded_audio is not None
        module.encoded_audio.restore()
        assert module.answer(batch["inputs"]) == want
        with encoded_audio(module.model):
            assert module.answer({**batch["inputs"], **inputs}) == want

    def test_can_be_pickled(self) -> None:
        module, batch = recipe(), data()[1]
        assert pickle.loads(pickle.dumps(module)).answer(batch["inputs"]) == module.answer(batch["inputs"])

    def test_the_projector_alone_needs_lora(self) -> None:
        with pytest.raises(HeadRouterError, match="train_projector is for lora"):
            make(train_projector=True)
        model = tiny.build("qwen2_5_omni_thinker")
        with pytest.raises(HeadRouterError, match=r"PeftModel\w* has no 'multi_modal_projector'\."):
            make(model, lora=LoraConfig(target_modules=["q_proj"]), train_projector=True)


class TestConstruction:
    def test_an_unsupported_model_is_refused(self) -> None:
        config = transformers.LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
        with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.*'llama'.*Supported model types"):
            make(transformers.LlamaForCausalLM(config))

    def test_a_processor_is_needed(self) -> None:
        with pytest.raises(HeadRouterError, match="Pass the model's processor"):
            LALMModule(tiny.build(FAMILY))

    def test_unknown_task(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'transcription'"):
            make(task="transcribe")


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tiny.build(FAMILY).save_pretrained(tmp_path)
        return tmp_path

    def test_by_path(self, folder: Path) -> None:
        module = make(str(folder), attn_implementation="eager")
        assert module.model.config._attn_implementation == "eager"
        saved: dict[str, Tensor] = tiny.build(FAMILY).state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in module.model.state_dict().items())

    def test_in_half_precision_takes_the_processors_float32(self, folder: Path) -> None:
        module = make(str(folder), dtype="bfloat16", learning_rate=0.0)
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        batch = data()[0]
        assert batch["inputs"]["input_features"].dtype == torch.float32
        (result,) = trainer().validate(module, loader(data(texts())), verbose=False)
        assert list(result) == ["val/transcription"]
        trainer(max_epochs=1).fit(module, loader([with_labels(batch)]))
        half = tiny.build(FAMILY, dtype=torch.bfloat16)
        inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch["inputs"].items()}
        want = half.generate(**inputs, max_new_tokens=WORDS, do_sample=False)[:, -WORDS:]
        assert module.answer(batch["inputs"]) == StubProcessor().batch_decode(want)

    def test_an_unknown_architecture_is_refused(self, folder: Path) -> None:
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace("AudioFlamingo3ForConditionalGeneration", "Mystery"))
        with pytest.raises(HeadRouterError, match=r"architectures \['Mystery'\]; none is in transformers"):
            make(str(folder))


def packed(answers: list[list[int]], ids: Tensor) -> dict[str, Any]:
    """The batch of two samples with these answers at the ends of its prompts, as questions with tasks."""
    batch = data()[0]
    labels = torch.full_like(ids, -100)
    for row, answer in enumerate(answers):
        labels[row, -len(answer) :] = torch.tensor(answer)
    return {"inputs": {**batch["inputs"], "input_ids": ids, "labels": labels}, "keys": ["a", "b"],
            "tasks": [["code"], ["language"]]}  # fmt: skip


def test_packed_validation_finds_right_what_would_be_generated() -> None:
    """Two tokens are appended to each prompt: what greedy generation says, and in one sample something else."""
    module, batch = make(), data()[0]
    inputs = batch["inputs"]
    with torch.no_grad():
        said = module.model.generate(**inputs, max_new_tokens=2, do_sample=False)[:, -2:]  # type: ignore[operator]
    wrong = said.clone()
    wrong[1, 1] = (wrong[1, 1] + 1) % 90
    scores = []
    for answer in (said, wrong):
        ids = torch.cat([inputs["input_ids"], answer], dim=1)
        both = packed(answer.tolist(), ids)
        both["inputs"]["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)
        run = trainer()
        run.validate(module, loader([both]), verbose=False)
        scores.append({name: float(run.callback_metrics[f"val/{name}"]) for name in ("code", "language")})
        assert run.callback_metrics["val/loss"] > 0
    assert scores == [{"code": 1.0, "language": 1.0}, {"code": 1.0, "language": 0.0}]


def test_each_answer_of_a_row_is_scored_by_itself() -> None:
    labels = torch.tensor([[-100, -100, 3, 4, -100, 5, -100], [-100, 6, -100, -100, -100, -100, 7]])
    likeliest = torch.tensor([3, 4, 0, 6, 7])
    logits = torch.nn.functional.one_hot(likeliest, 9).float()
    assert _answered_exactly(logits, labels).tolist() == [True, False, True, True]
