"""The encoder's adapter learns what is heard; the decoder's training goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny_pocket
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import DataLoader
from two_processes import run_two

from headrouter_pl import LALMModule
from headrouter_pl.alignment import Utterance
from headrouter_pl.alignment_module import AlignmentModule
from headrouter_pl.callbacks import AdapterExport, AlignProjector
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule
from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.models.checkpoints import encoder_digest, load_adapter, merge_adapter
from headrouter_pl.models.encoded import encode_audio, encode_windows, run_encoder
from headrouter_pl.tensorfile import read

BOTH = r".*\.(q_proj|fc1|up_proj)"  # layers of the encoder, and of the decoder
HEARD = [(0, 12, "w40 w41", {"voice": "w50"}), (12, 25, "", {"voice": "w51"})]


class Windows(L.LightningDataModule):
    """Noise, in which two are heard."""

    processor = tiny_pocket.make_processor()

    def __init__(self, texts: bool = True) -> None:
        super().__init__()
        self.texts = texts

    def vocabulary(self) -> tuple[dict[str, set[str]], set[str]]:
        return {"voice": {"w50", "w51"}, "gender": {"w52"}}, {"w40 w41", "w42"}

    def utterances(self) -> list[Utterance]:
        features = encode_audio(tiny_pocket.build(), self.processor, tiny_pocket.noise(0, 1))
        return [Utterance(features[first:last], text, labels) for first, last, text, labels in HEARD]

    def batch(self, seed: int) -> dict[str, Any]:
        inputs = self.processor(text=self.processor.audio_token, audio=tiny_pocket.noise(seed, 1))
        heard = HEARD if self.texts else [(first, last, "", labels) for first, last, _, labels in HEARD]
        return {"inputs": {name: inputs[name] for name in ("input_features", "input_features_mask")}, "heard": [heard]}

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch(0)] * 4, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.batch(9)], batch_size=None)  # type: ignore[arg-type]


def make(**options: Any) -> AlignmentModule:
    torch.manual_seed(2)
    settings = {"lora": LoraConfig(r=2, target_modules=BOTH), "train_projector": True, "learning_rate": 0.02}
    return AlignmentModule(model=tiny_pocket.build(), processor=Windows.processor, **{**settings, **options})


def fit(module: LALMModule, *callbacks: L.Callback, data: Any = None, resume: Any = None, steps: int = 4) -> Any:
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=saves, enable_progress_bar=False,
        enable_model_summary=False, max_steps=steps, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, datamodule=data or Windows(), ckpt_path=resume)
    return trainer


def weights(module: LALMModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_encoder_and_projector_learn_and_the_decoder_stays(tmp_path: Path) -> None:
    module = make()
    before = weights(module)
    trainer = fit(module, AdapterExport(str(tmp_path)))
    after = weights(module)
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    lora = {name for name in before if "lora_" in name}
    assert {name for name in lora if ".audio_tower." in name} < changed
    assert any("language_model" in name for name in lora)
    assert all("projector" in name or (".audio_tower." in name and "lora_" in name) for name in changed)
    assert {"val/ctc", "val/voice"} <= trainer.callback_metrics.keys()
    assert "val/gender" not in trainer.callback_metrics  # of one label alone
    loaded = merge_adapter(load_adapter(tiny_pocket.build(), tmp_path)).eval()
    module.eval()
    inputs = Windows().batch(3)["inputs"]
    assert torch.allclose(run_encoder(loaded, **inputs)[0], run_encoder(module.model, **inputs)[0], atol=1e-5)


def test_outputs_end_as_large_as_embeddings() -> None:
    module = make(learning_rate=1e-5, projector_learning_rate=1e-5)
    fit(module)
    inputs = Windows().batch(3)["inputs"]
    with torch.no_grad():
        outputs = module.model.base_model.model.model.multi_modal_projector(encode_windows(module.model, **inputs))
    embeddings: Any = module.model.get_input_embeddings()  # type: ignore[operator]
    assert outputs.std().item() == pytest.approx(embeddings.weight.std().item(), rel=0.2)


def test_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = make()
    fit(whole, AlignProjector(steps=2, batch_size=2), save)
    again = make()
    fit(again, AlignProjector(steps=2, batch_size=2), resume=tmp_path / "step=2.ckpt")
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(again)[name], value, msg=name)


def test_windows_in_which_nothing_is_said() -> None:
    class Gradients(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            waiting = [name for name, p in pl_module.named_parameters() if p.requires_grad and p.grad is None]
            assert not waiting, "DDP would wait for these"
            seen.append(len(waiting))

    seen: list[int] = []
    fit(make(), Gradients(), data=Windows(texts=False))
    assert len(seen) == 4


def test_the_projector_is_aligned_with_the_same_loss() -> None:
    module = make()
    fit(module, AlignProjector(steps=3, batch_size=2), steps=1)
    fresh = make()
    fit(fresh, steps=1)
    assert module.alignment is not None
    assert fresh.alignment is not None
    assert (module.alignment.blank - fresh.alignment.blank).abs().max() > 1e-3


def test_refusals() -> None:
    with pytest.raises(HeadRouterError, match="needs lora on layers of the audio_tower, and train_projector"):
        make(train_projector=False)
    with pytest.raises(HeadRouterError, match="needs lora on layers of the audio_tower"):
        make(lora=LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj"))
    with pytest.raises(ConfigurationError, match="begins with an adapter"):
        make(initial_checkpoint="last.ckpt")
    with pytest.raises(HeadRouterError, match="data module with vocabulary"):
        fit(make(), data=AudioPromptDataModule(Windows.processor, train=[AudioPrompt(tiny_pocket.noise(0, 1), "w9")]))


def question() -> dict[str, Any]:
    """A training batch for the decoder, of encoded audio."""
    record = AudioPrompt(tiny_pocket.noise(0, 1), "w40", "w9")
    batch = AudioPromptDataModule(Windows.processor, train=[record]).collate_train([record])
    batch["inputs"]["input_features"] = torch.randn(1, 25, 32, generator=torch.Generator().manual_seed(0))
    batch["inputs"]["input_features_mask"] = torch.ones(1, 25, dtype=torch.long)
    return batch


def test_the_decoders_training_keeps_the_encoders_adapter(tmp_path: Path) -> None:
    fit(make(), AdapterExport(str(tmp_path / "encoder")))
    learned = read(tmp_path / "encoder/adapter_model.safetensors")[1]

    def decoder(**options: Any) -> LALMModule:
        return LALMModule(
            tiny_pocket.build(), Windows.processor, adapter=tmp_path / "encoder", train_projector=True,
            encoded_audio=True, learning_rate=0.02, **options,
        )  # fmt: skip

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    data = L.LightningDataModule.from_datasets([question()] * 3, batch_size=1)
    data.train_dataloader = lambda: DataLoader([question()] * 3, batch_size=None)  # type: ignore[method-assign, arg-type]
    module = decoder()
    fit(module, AdapterExport(str(tmp_path / "both")), save, data=data, steps=2)
    assert module.encoded_audio is not None
    assert not module.encoded_audio.restored
    saved = read(tmp_path / "both/adapter_model.safetensors")[1]
    assert saved.keys() == learned.keys()
    for name, value in saved.items():
        if ".audio_tower." in name or "lora_B" in name:  # A of a layer whose B is zero has no gradient at first
            assert torch.equal(value, learned[name]) == (".audio_tower." in name), name
    assert module.encoder_digest() == encoder_digest(tmp_path / "encoder") != ""
    assert encoder_digest(tmp_path / "both") == encoder_digest(tmp_path / "encoder")
    checkpoint = torch.load(tmp_path / "step=1.ckpt", weights_only=True)["state_dict"]
    assert any(".audio_tower." in name for name in checkpoint)
    # A checkpoint brings the encoder's adapter along, also to a model that begins with another.
    torch.manual_seed(5)
    fresh = LALMModule(
        tiny_pocket.build(), Windows.processor, lora=LoraConfig(r=2, target_modules=BOTH), train_projector=True,
        encoded_audio=True, initial_checkpoint=str(tmp_path / "step=1.ckpt"),
    )  # fmt: skip
    assert fresh.encoder_digest() == module.encoder_digest()
    resumed = LALMModule(
        tiny_pocket.build(), Windows.processor, lora=LoraConfig(r=2, target_modules=BOTH), train_projector=True,
        encoded_audio=True, learning_rate=0.02,
    )  # fmt: skip
    assert resumed.encoder_digest() != module.encoder_digest()
    fit(resumed, data=data, resume=tmp_path / "step=1.ckpt", steps=2)
    assert resumed.encoder_digest() == module.encoder_digest()
    for name, value in weights(module).items():
        torch.testing.assert_close(weights(resumed)[name], value, msg=name)


class Uneven(Windows):
    """Two batches: the first tells of no voice, the other of nothing said. Each of two processes has one of them."""

    def vocabulary(self) -> tuple[dict[str, set[str]], set[str]]:
        return {"voice": {"w50", "w51"}, "gender": {"w52", "w53"}}, {"w40 w41", "w42"}

    def val_dataloader(self) -> DataLoader:
        first, other = self.batch(1), self.batch(2)
        first["heard"] = [[(0, 12, "w40 w41", {"gender": "w52"})]]
        other["heard"] = [[(0, 12, "", {"gender": "w53", "voice": "w50"}), (12, 25, "", {"voice": "w51"})]]
        trainer: Any = self.trainer
        mine = [first, other][trainer.global_rank :: trainer.world_size]
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]


def validate(**options: Any) -> dict[str, float]:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    (found,) = trainer.validate(make(), datamodule=Uneven(), verbose=False)
    return dict(found)


DDP = """
import json, os, sys
sys.path[:0] = PATH
from test_alignment_module import validate

found = validate(devices=2, strategy="ddp_find_unused_parameters_true")
with open(f"{os.environ.get('LOCAL_RANK', 0)}.json", "w") as out:
    json.dump(found, out)
"""


def test_processes_that_hear_different_things_agree_on_the_figures(tmp_path: Path) -> None:
    one, other = run_two(DDP, __file__, tmp_path)
    assert one == other
    assert one.keys() == {"val/ctc", "val/gender", "val/voice"}
    assert one == pytest.approx(validate())
