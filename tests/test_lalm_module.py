"""LALMModule over a tiny AudioFlamingo3, with a processor that turns ids into words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
import transformers
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import DataLoader

from headrouter_pl import AudioTokenPruner, HeadRouterCallback, HeadRouterError, LALMModule
from headrouter_pl.errors import UnknownNameError, UnsupportedModelError

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

    def test_accuracy_of_known_answers(self) -> None:
        answers = texts()
        answers[0][0] = answers[0][0].upper() + "."
        answers[1][0] += " more"
        (result,) = trainer().validate(make(task="question"), loader(data(answers)), verbose=False)
        assert result == {"val/question": pytest.approx(2 / 3)}

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
        (result,) = trainer().validate(module, loader(data()), verbose=False)
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
