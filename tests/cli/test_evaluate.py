"""``headrouter-pl evaluate`` on a tiny model and scenes of noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny_pocket import PROMPTS, build, make_processor, make_questions, noise
from transformers import AudioFlamingo3ForConditionalGeneration

from headrouter_pl import LALMModule
from headrouter_pl.cli import evaluate as command
from headrouter_pl.cli import main
from headrouter_pl.cli.pocket import load_model
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule
from headrouter_pl.data.pocket.benchmark import PocketBenchmark
from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.models import pocket_weights
from headrouter_pl.models.answering import AudioReader
from headrouter_pl.models.pocket import AUDIO_TOKEN, PocketError
from headrouter_pl.models.pocket_weights import load_pocket_checkpoint


@torch.inference_mode()
def test_answers_are_those_of_the_plain_way() -> None:
    model, processor = build(), make_processor()
    reader = AudioReader(model, processor, max_new_tokens=6)
    texts = []
    for seed, seconds in enumerate((1.7, 0.8)):
        read = reader.read(noise(seed, seconds))
        for prompt in (*PROMPTS, PROMPTS[0]):
            record = AudioPrompt(noise(seed, seconds), prompt)
            inputs = AudioPromptDataModule(processor).collate([record])["inputs"]
            assert torch.equal(inputs["input_ids"][:, : read.ids.shape[1]], read.ids)
            output = model.generate(**inputs, do_sample=False, max_new_tokens=6)
            want = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert reader.answer(read, prompt) == want
            assert read.cache.get_seq_length() == read.ids.shape[1]
            texts.append(want)
    assert len(set(texts)) > 2  # both the audio and the question matter
    with pytest.raises(HeadRouterError, match="does not render"):
        reader.answer(read, f"w4 {AUDIO_TOKEN} w5")


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PocketBenchmark:
    """Three scenes, five questions; the model is the tiny one."""
    made = make_questions(tmp_path)
    monkeypatch.setattr(PocketBenchmark, "open", lambda split: made)
    monkeypatch.setattr(command, "load_model", lambda weights, checkpoint, dtype: (build().to(dtype), make_processor()))
    monkeypatch.setattr(command, "MAX_NEW_TOKENS", 4)
    return made


def test_run(questions: PocketBenchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, details = tmp_path / "new" / "eval.json", tmp_path / "new" / "details.jsonl"
    main(["evaluate", "--weights", "untrained", "--output", str(out), "--details", str(details)])
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["split"] == "test"
    assert figures["command"] == f"headrouter-pl evaluate --weights untrained --output {out} --details {details}"
    assert figures["questions"] == 5
    assert {(row["task"], row["type"], row["length_s"], row["n"]) for row in figures["rows"]} == {
        ("gender", "voice", 1, 2), ("gender", "voice", 2, 1), ("gender", "voice", "1-2", 3),
        ("all", "voice", 1, 2), ("all", "voice", 2, 1), ("all", "voice", "1-2", 3),
        ("transcription", "semantic", 1, 2), ("all", "semantic", 1, 2),
    }  # fmt: skip
    for row in figures["rows"]:
        assert {"accuracy", "ci95", "chance", "accuracy_silenced"} <= row.keys()
    assert figures["confusions"].keys() == {"gender"}
    for word in ("Tasks", "Types", "missed", "Word error rate", "gender, below its target"):
        assert word in printed
    rows = [json.loads(line) for line in details.read_text().splitlines()]
    assert rows[0]["configuration"]["dtype"] == "bfloat16"
    assert [row["key"] for row in rows[1:]] == [item.key for item in questions.items]
    assert rows[1].keys() == {"key", "prompt", "answer", "text", "right", "silenced"}
    # Silence of one length gives one answer to a question.
    assert (rows[1]["silenced"], rows[2]["silenced"]) == (rows[3]["silenced"], rows[4]["silenced"])
    reader = AudioReader(build().bfloat16(), make_processor(), 4)
    assert rows[5]["text"] == reader.answer(reader.read(noise(2, 2)), PROMPTS[2])
    assert rows[5]["silenced"] == reader.answer(reader.read(np.zeros(32_000, np.float32)), PROMPTS[2])


def test_a_stopped_run_goes_on(questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    details = str(tmp_path / "details.jsonl")
    whole = command.evaluate(details=str(tmp_path / "whole.jsonl"))
    plain, asked = AudioReader.answer, []

    def answer(self: AudioReader, read: Any, prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 7:
            raise KeyboardInterrupt
        return plain(self, read, prompt)

    with monkeypatch.context() as patch:
        patch.setattr(AudioReader, "answer", answer)
        with pytest.raises(KeyboardInterrupt):
            command.evaluate(details=details)
        Path(tmp_path / "early.jsonl").write_text(Path(details).read_text()[:20])  # killed in the first line
        with open(details, "a") as file:
            file.write('{"key": "test/1/transcr')  # half a line
        kept = len(Path(details).read_text().splitlines()) - 2
        assert kept >= 3
        asked[:] = [""] * 7
        again = command.evaluate(details=details)
    assert len(asked) - 7 < 2 * (len(questions.items) - kept) + 1
    assert again["rows"] == whole["rows"]
    assert Path(details).read_text() == (tmp_path / "whole.jsonl").read_text()
    assert command.evaluate(details=str(tmp_path / "early.jsonl"))["rows"] == whole["rows"]
    asked.clear()
    assert command.evaluate(details=details)["rows"] == whole["rows"]
    assert not asked


def test_another_run_is_refused(questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    details = str(tmp_path / "details.jsonl")
    figures = command.evaluate(details=details, silenced=False, lengths=[2])
    assert figures["questions"] == 1
    assert figures["command"] == "headrouter_pl.cli.evaluate.evaluate"  # no command line was given
    assert "accuracy_silenced" not in figures["rows"][0]
    with pytest.raises(HeadRouterError, match="other items"):
        command.evaluate(details=details, silenced=False, lengths=[1], max_scenes=1)
    with pytest.raises(HeadRouterError, match="other dtype, silenced"):
        command.evaluate(details=details, lengths=[2], dtype="float32")
    changed = PocketBenchmark(questions.folder, [replace(item, prompt="w7") for item in questions.items])
    monkeypatch.setattr(PocketBenchmark, "open", lambda split: changed)
    with pytest.raises(HeadRouterError, match="other items"):
        command.evaluate(details=details, silenced=False, lengths=[2])
    with pytest.raises(HeadRouterError, match=r"no questions about scenes of \[7\] s; there are"):
        command.evaluate(lengths=[1, 7])
    with pytest.raises(ConfigurationError, match="max_scenes must be positive"):
        command.evaluate(lengths=[1], max_scenes=0)
    with pytest.raises(HeadRouterError, match="no questions to ask"):
        command.evaluate(lengths=[])


@pytest.mark.parametrize("content", ['{"configuration"} \n', '{"a": 1}\n', "[]", "[1]\n", "words"])
def test_what_is_not_a_file_of_answers_is_kept(questions: PocketBenchmark, tmp_path: Path, content: str) -> None:
    details = tmp_path / "details.jsonl"
    details.write_text(content)
    with pytest.raises(HeadRouterError, match="does not hold results"):
        command.evaluate(details=str(details))
    assert details.read_text() == content


def test_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket_weights, "load_pocket", lambda cache, **_: (build(), "its processor"))
    lora = LoraConfig(
        r=2, lora_alpha=6, target_modules=r".*language_model.*\.(q_proj|up_proj)", init_lora_weights=False
    )
    module = LALMModule(
        build(), make_processor(), lora=lora, train_projector=True, encoded_audio=True, lr_schedule="cosine"
    )
    record = AudioPrompt(noise(0, 1), "w40", "w9")
    batch = AudioPromptDataModule(make_processor(), train=[record]).collate_train([record])
    batch["inputs"]["input_features"] = torch.randn(1, 25, 32)
    batch["inputs"]["input_features_mask"] = torch.ones(1, 25, dtype=torch.long)
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch], batch_size=None))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module.encoded_audio.restore()  # type: ignore[union-attr]
    module.eval()
    model, processor = load_pocket_checkpoint(tmp_path / "last.ckpt")
    assert processor == "its processor"
    assert type(model) is AudioFlamingo3ForConditionalGeneration
    inputs = AudioPromptDataModule(make_processor()).collate([record])["inputs"]
    with torch.no_grad():
        want = module(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, want, rtol=0, atol=1e-4)
        assert (build()(**inputs).logits - want).abs().max() > 0.05
    half, _ = load_pocket_checkpoint(tmp_path / "last.ckpt", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}

    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    projector = next(name for name in saved["state_dict"] if "projector" in name)
    for change, message in (
        (lambda state: state.pop(projector), "missing"),
        (lambda state: state.update({projector: torch.zeros(3)}), "another model"),
        (lambda state: [state.pop(name) for name in list(state) if "lora" in name], "no LoRA"),
    ):
        other = {**saved, "state_dict": dict(saved["state_dict"])}
        change(other["state_dict"])
        torch.save(other, tmp_path / "other.ckpt")
        with pytest.raises(PocketError, match=message):
            load_pocket_checkpoint(tmp_path / "other.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:1000])
    for name in ("cut.ckpt", "none.ckpt"):
        with pytest.raises(PocketError, match="not a checkpoint"):
            load_pocket_checkpoint(tmp_path / name)


def test_weights_or_checkpoint() -> None:
    with pytest.raises(HeadRouterError, match="not both"):
        load_model("untrained", "last.ckpt", torch.float32)


def test_types_by_length() -> None:
    def row(kind: str, length: int | str, accuracy: float, task: str = "all") -> dict[str, Any]:
        return {"task": task, "type": kind, "length_s": length, "n": 10, "accuracy": accuracy, "ci95": [0.1, 0.9]}

    rows = [row("voice", 8, 0.1), row("voice", "8-15", 0.2), row("sound", 15, 0.3), row("voice", 8, 0.4, "speaker")]
    titles, _, voice, sound = command.by_length({"rows": rows}).splitlines()
    assert [cell.strip() for cell in titles.strip("|").split("|")] == ["type", "8 s", "15 s"]
    assert [cell.strip() for cell in voice.strip("|").split("|")] == ["voice", "0.10 [0.10, 0.90], n = 10", ""]
    assert [cell.strip() for cell in sound.strip("|").split("|")] == ["sound", "", "0.30 [0.10, 0.90], n = 10"]


def test_the_card_names_the_lengths_that_there_are() -> None:
    def row(length: int | str, accuracy: float, **more: Any) -> dict[str, Any]:
        return {"task": "code", "type": "semantic", "length_s": length, "n": 10, "accuracy": accuracy,
                "ci95": [0.1, 0.9], "chance": 0.25, **more}  # fmt: skip

    short = row("8-15", 0.2, target=0.9, wer=0.5, wer_ci95=[0.4, 0.6])
    lines = command.card({"rows": [row(8, 0.1), short, row(15, 0.3), row(60, 0.4)]}).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")][3:5] == ["8-15 s", "60 s"]
    assert "0.20 [0.10, 0.90], n = 10 (target 0.90); WER 0.50 [0.40, 0.60]" in lines[2]
    assert "0.40" in lines[2]
