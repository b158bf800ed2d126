"""Training data of the encoder: windows as they are heard, on tones."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_pocket import build, make_processor

from headrouter_pl import LALMModule
from headrouter_pl.data.pocket import listening
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.listening import PocketListeningDataModule
from headrouter_pl.data.pocket.pools import Pools
from headrouter_pl.data.pocket.training import PocketDataModule
from headrouter_pl.data.pocket.windows import FRAMES_PER_SECOND, WINDOW_SECONDS, EncodedWindows, draw_window
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models import pocket
from headrouter_pl.models.checkpoints import save_adapter


class Processor:
    """Gives the loudness of each frame, where the real one gives mel features."""

    audio_token = "<audio>"

    def __call__(self, text: str, audio: np.ndarray) -> dict[str, torch.Tensor]:
        assert text == self.audio_token
        frames = torch.from_numpy(audio).reshape(1, 1, -1, 16_000 // FRAMES_PER_SECOND)
        return {"input_features": frames.abs().mean(-1), "input_features_mask": torch.ones(1, frames.shape[2])}


def make(library: ClipLibrary, **options: Any) -> PocketListeningDataModule:
    data = PocketListeningDataModule(samples=6, batch_size=2, validation_samples=3, **options)
    data.library, data.processor = library, Processor()  # type: ignore[assignment]
    return data


def test_batches(tones_library: ClipLibrary) -> None:
    data = make(tones_library)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 3
    frames = round(WINDOW_SECONDS * FRAMES_PER_SECOND)
    labels, texts = data.vocabulary()
    for batch in batches:
        assert batch["inputs"]["input_features"].shape == (2, 1, frames)
        assert len(batch["heard"]) == 2
        for row, heard in zip(batch["inputs"]["input_features"], batch["heard"], strict=True):
            assert heard
            between = torch.ones(frames, dtype=torch.bool)
            for first, last, _, _ in heard:
                between[first:last] = False
            for first, last, text, found in heard:
                assert 0 <= first < last <= frames
                assert row[0, first + 2 : last - 2].mean() > row[0][between].mean()  # something is heard there
                assert text == "" or text in texts
                assert all(label in labels[name] for name, label in found.items())


def test_windows_are_the_same_for_the_same_seed_and_of_clips_of_the_split(
    tones_library: ClipLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def spy(scene: Any, library: ClipLibrary) -> np.ndarray:
        seen.append({library.splits[event.clip] for event in scene.events})
        return np.zeros(round(WINDOW_SECONDS * 16_000), np.float32)

    monkeypatch.setattr(listening, "render", spy)
    one, two = ([batch["heard"] for batch in make(tones_library).train_dataloader()] for _ in range(2))
    assert one == two
    assert one != [batch["heard"] for batch in make(tones_library, seed=1).train_dataloader()]
    assert seen == [{"train"}] * 18
    seen.clear()
    assert len(list(make(tones_library).val_dataloader())) == 2
    assert seen == [{"validation"}] * 3


def test_the_decoders_windows_are_encoded_with_the_adapter(
    tones_library: ClipLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = get_peft_model(build(), LoraConfig(target_modules=r".*\.(fc1|up_proj)", init_lora_weights=False))
    save_adapter(adapted, tmp_path / "adapter")
    monkeypatch.setattr(pocket, "load_pocket", lambda cache, **_: (build(), make_processor()))
    monkeypatch.setattr(ClipLibrary, "open", lambda **_: tones_library)
    encoders: list[Any] = []

    def encode(windows: EncodedWindows, model: Any, processor: Any) -> None:
        encoders.append(model.model.audio_tower.layers[0].fc1.weight.float())

    monkeypatch.setattr(EncodedWindows, "encode", encode)
    plain, other = (
        PocketDataModule([], 2, 0, 0, 0, 0, 0, cache=str(tmp_path), encoder=encoder)
        for encoder in (None, str(tmp_path / "adapter"))
    )
    paths = [[windows._paths for windows in data.encoded_windows(tones_library, "train")] for data in (plain, other)]
    assert paths[0] != paths[1]
    plain.prepare_data()
    other.prepare_data()
    before = build().model.audio_tower.layers[0].fc1.weight
    layer = adapted.base_model.model.model.audio_tower.layers[0].fc1
    assert torch.allclose(encoders[0], before, atol=1e-2)
    assert (encoders[-1] - before).abs().max() > 0.05
    assert torch.allclose(encoders[-1], before + layer.get_delta_weight("default"), atol=2e-2)


def test_the_model_must_have_the_adapter_that_the_windows_are_encoded_with(
    tones_library: ClipLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"target_modules": r".*\.(fc1|up_proj)", "init_lora_weights": False}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        save_adapter(get_peft_model(build(), LoraConfig(**lora)), tmp_path / name)
    monkeypatch.setattr(pocket, "load_processor", lambda cache: make_processor())
    monkeypatch.setattr(ClipLibrary, "open", lambda **_: tones_library)
    for model, encoder, message in (
        ("one", "one", ""), (None, None, ""), ("one", "two", "another adapter"), ("one", None, "another adapter"),
        (None, "one", "no adapter of its encoder"),
    ):  # fmt: skip
        module = LALMModule(
            build(), make_processor(), adapter=None if model is None else tmp_path / model, encoded_audio=True
        )
        data = PocketDataModule([], 2, encoder=None if encoder is None else str(tmp_path / encoder))
        data.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
        with pytest.raises(HeadRouterError, match=message) if message else nullcontext():
            data.setup("fit")


def test_an_adapter_of_the_decoder_alone_encodes_as_none(tones_library: ClipLibrary, tmp_path: Path) -> None:
    decoder = get_peft_model(build(), LoraConfig(target_modules=r".*\.up_proj"))
    save_adapter(decoder, tmp_path)
    plain, other = (PocketDataModule([], 2, encoder=encoder) for encoder in (None, str(tmp_path)))
    paths = [[windows._paths for windows in data.encoded_windows(tones_library, "train")] for data in (plain, other)]
    assert paths[0] == paths[1]
    pools = Pools.of(tones_library, "train")
    assert EncodedWindows(pools, 2, draw=draw_window)._paths == paths[0][0]
