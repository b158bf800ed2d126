"""HeadRouterGallery in real Trainers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import tiny_pocket
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from headrouter_pl import HeadRouterCallback, LALMModule
from headrouter_pl.callbacks import HeadRouterGallery
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule
from headrouter_pl.errors import ConfigurationError, UnknownNameError
from headrouter_pl.models import FAMILIES
from headrouter_pl.pictures import Gallery

torch.set_num_threads(1)

RATIOS = [0.6, 0.2]


def module(**settings: Any) -> LALMModule:
    generate = {"max_new_tokens": 3, **settings}
    return LALMModule(tiny_pocket.build(), tiny_pocket.make_processor(), task="question", generate=generate)


def records(count: int = 4) -> list[AudioPrompt]:
    return [
        AudioPrompt(tiny_pocket.noise(i, 1 + i % 2), tiny_pocket.PROMPTS[i % 3], "w9", f"key {i}") for i in range(count)
    ]


def data(found: list[AudioPrompt], **settings: Any) -> AudioPromptDataModule:
    every = {stage: found for stage in ("validate", "test", "predict")}
    return AudioPromptDataModule(tiny_pocket.make_processor(), **{**every, "batch_size": 2, **settings})


def trainer(*callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip


def read(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The page's index and its samples."""
    page = path.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', page, re.DOTALL)
    (_, index), *samples = [(name, json.loads(text)) for name, text in found]
    return index["samples"], [sample for _, sample in samples]


class Collect(L.Callback):
    """Keeps what each batch gave."""

    def __init__(self, pruned: HeadRouterCallback | None = None) -> None:
        self.pruned, self.texts, self.kept = pruned, [], []  # type: ignore[var-annotated]

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.texts += outputs["texts"]
        if self.pruned is not None:
            self.kept += [sample.kept_mask.tolist() for sample in self.pruned.report.samples]


def kept(view: dict[str, Any]) -> list[bool]:
    return [bool(i % 2) for i, length in enumerate(view["kept"]) for _ in range(length)]


class TestPage:
    @pytest.mark.parametrize("first", [True, False])
    def test_shows_the_run_and_other_ratios(self, tmp_path: Path, first: bool) -> None:
        """Whichever callback stands first."""
        pruned = HeadRouterCallback(0.4)
        gallery = HeadRouterGallery(
            tmp_path / "page.html", samples=3, keep_ratios=RATIOS, scorers=["headrouter", "stride"]
        )
        run = Collect(pruned)
        callbacks = [gallery, pruned] if first else [pruned, gallery]
        trainer(*callbacks, run).validate(module(), data(records()), verbose=False)
        assert gallery.page == tmp_path / "page.html"
        index, samples = read(gallery.page)
        assert [entry["key"] for entry in index] == ["key 0", "key 1", "key 2"]
        plain = Collect()
        trainer(plain).validate(module(), data(records()), verbose=False)
        for number, (entry, sample) in enumerate(zip(index, samples, strict=True)):
            assert entry["question"] == records()[number].prompt
            assert entry["seconds"] == 1 + number % 2
            assert sample["unpruned"] == plain.texts[number]
            assert sample["tokens"] == 25 * (1 + number % 2)
            assert [(view["scorer"], view["ratio"]) for view in sample["views"]] == [
                ("this run", 0.4), *((name, ratio) for name in ("headrouter", "stride") for ratio in RATIOS)
            ]  # fmt: skip
            assert sample["views"][0]["text"] == run.texts[number]
            assert kept(sample["views"][0]) == run.kept[number]
            for view in sample["views"]:
                assert view["count"] == round(view["ratio"] * sample["tokens"])
            assert set(sample["views"][0]["route"]) == set(sample["views"][1]["route"])
            assert "audio" in sample["views"][0]["route"]

    def test_tokens_of_silence_that_was_filled_in_stand_behind_the_sound(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As Voxtral's and Gemma 3n's processors do."""
        family = FAMILIES["audioflamingo3"]
        monkeypatch.setitem(FAMILIES, "audioflamingo3", dataclasses.replace(family, window=1.5))
        gallery = HeadRouterGallery(tmp_path / "page.html", samples=2, keep_ratios=RATIOS)
        trainer(gallery).validate(module(), data(records(2)), verbose=False)
        assert [entry["seconds"] for entry in read(tmp_path / "page.html")[0]] == [1.5, 3]

    def test_without_a_cache(self, tmp_path: Path) -> None:
        """Each step of decoding is a prefill of all samples then, and a sample's row is that of the first."""
        views = []
        for use_cache in (True, False):
            page = tmp_path / f"{use_cache}.html"
            gallery = HeadRouterGallery(page, samples=2, keep_ratios=RATIOS)
            made = trainer(gallery, HeadRouterCallback(0.4))
            made.validate(module(use_cache=use_cache), data(records(2)), verbose=False)
            views.append([[view["kept"] for view in sample["views"]] for sample in read(page)[1]])
        assert views[0] == views[1]
        assert views[0][0] != views[0][1]

    def test_the_run_goes_on_as_without_it(self, tmp_path: Path) -> None:
        found = []
        for more in ([], [HeadRouterGallery(tmp_path / "page.html", samples=3, keep_ratios=RATIOS)]):
            pruned, torch_seed = HeadRouterCallback(0.4), 0
            run = Collect(pruned)
            torch.manual_seed(torch_seed)
            settings = {"do_sample": True, "temperature": 2.0}
            (logged,) = trainer(pruned, *more, run).validate(module(**settings), data(records()), verbose=False)
            found.append((logged, run.texts, run.kept, pruned.totals))
        assert found[0] == found[1]
        assert len(set(found[0][1])) > 1

    def test_calibration_by_the_run_itself_is_not_disturbed(self, tmp_path: Path) -> None:
        found = []
        gallery = HeadRouterGallery(tmp_path / "page.html", keep_ratios=RATIOS)
        for more in ([], [gallery]):
            pruned = HeadRouterCallback(0.4, profile="self", calibration_batches=2)
            trainer(*more, pruned).validate(module(), data(records(6)), verbose=False)
            weights = pruned.calibrated["validate"].weights
            assert weights is not None
            found.append((weights.tolist(), pruned.totals))
        assert found[0] == found[1]
        _, samples = read(tmp_path / "page.html")
        assert [sample["views"][0]["count"] / sample["tokens"] for sample in samples[:2]] == [1, 1]  # measured
        assert [sample["views"][0]["count"] / sample["tokens"] for sample in samples[4:]] == [0.4, 0.4]

    @pytest.mark.parametrize("stage", ["test", "predict"])
    def test_other_stages_without_a_pruner(self, tmp_path: Path, stage: str) -> None:
        gallery = HeadRouterGallery(tmp_path / "page.html", samples=1, keep_ratios=[0.5])
        getattr(trainer(gallery), stage)(module(), datamodule=data(records()))
        index, samples = read(tmp_path / "page.html")
        assert [view[:2] for view in index[0]["views"]] == [["headrouter", 0.5]]
        assert len(samples) == 1

    def test_right_and_wrong(self, tmp_path: Path) -> None:
        plain = Collect()
        trainer(plain).validate(module(), data(records()), verbose=False)
        known = [AudioPrompt(r.audio, r.prompt, a, r.key) for r, a in zip(records(), plain.texts, strict=True)]
        known[1] = AudioPrompt(known[1].audio, known[1].prompt, "", known[1].key)
        known[2] = AudioPrompt(known[2].audio, known[2].prompt, "w1", known[2].key)
        gallery = HeadRouterGallery(tmp_path / "page.html", keep_ratios=RATIOS)
        with pytest.warns(UserWarning, match="'key 1' has no answer"):
            trainer(gallery).validate(module(), data(known), verbose=False)
        assert [entry["right"] for entry in read(tmp_path / "page.html")[0]] == [True, None, False, True]

    def test_batches_that_bring_their_audio_and_evidence(self, tmp_path: Path) -> None:
        made = data(records())
        batch = made.collate(records()[:2])
        batch |= {"audio": [r.audio for r in records()[:2]], "prompts": ["one", "two"], "types": ["voice", "sound"],
                  "evidence": [[(5, 10)], []]}  # fmt: skip
        gallery = HeadRouterGallery(tmp_path / "page.html", keep_ratios=[0.5])
        trainer(gallery).validate(module(), DataLoader([batch], batch_size=None), verbose=False)
        index, samples = read(tmp_path / "page.html")
        assert [(entry["question"], entry["kind"]) for entry in index] == [("one", "voice"), ("two", "sound")]
        assert [sample["evidence"] for sample in samples] == [[[0.2, 0.4]], []]

    def test_what_was_there_before_a_crash(self, tmp_path: Path) -> None:
        class Crash(L.Callback):
            def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, index: int, *_: Any) -> None:
                if index == 1:
                    raise RuntimeError("power cut")

        gallery = HeadRouterGallery(tmp_path / "page.html", keep_ratios=[0.5])
        with pytest.raises(RuntimeError, match="power cut"):
            trainer(gallery, Crash()).validate(module(), data(records()), verbose=False)
        assert len(read(tmp_path / "page.html")[0]) == 2

    def test_a_page_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is told at once; and at a crash the crash is told, and the hooks are gone."""
        (tmp_path / "file").touch()
        model = module()
        with pytest.raises(ConfigurationError, match="cannot be written"):
            trainer(HeadRouterGallery(tmp_path / "file" / "page.html", keep_ratios=[0.5])).validate(
                model, data(records()), verbose=False
            )

        class Crash(L.Callback):
            def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, index: int, *_: Any) -> None:
                if index == 1:
                    monkeypatch.setattr(Gallery, "write", lambda *args: (tmp_path / "file" / "page").write_text(""))
                    raise RuntimeError("power cut")

        gallery = HeadRouterGallery(tmp_path / "page.html", keep_ratios=[0.5])
        with pytest.raises(RuntimeError, match="power cut"), pytest.warns(UserWarning, match="could not write"):
            trainer(gallery, HeadRouterCallback(0.4), Crash()).validate(model, data(records()), verbose=False)
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.model.modules())


class TestRefusals:
    def test_settings(self) -> None:
        with pytest.raises(ConfigurationError, match="samples"):
            HeadRouterGallery(samples=0)
        with pytest.raises(ConfigurationError, match="differ"):
            HeadRouterGallery(keep_ratios=[0.5, 0.5])
        with pytest.raises(UnknownNameError):
            HeadRouterGallery(scorers=["fastw"])

    def test_modules_and_batches(self, tmp_path: Path) -> None:
        gallery = HeadRouterGallery(tmp_path / "page.html")
        with pytest.raises(ConfigurationError, match=r"BoringModel has none"):
            trainer(gallery).validate(BoringModel(), verbose=False)

        class Other(LALMModule):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                return None

        other = Other(tiny_pocket.build(), tiny_pocket.make_processor())
        with pytest.raises(ConfigurationError, match="'inputs', 'keys' and 'answers'"):
            trainer(gallery).validate(other, DataLoader([{"x": 1}], batch_size=None), verbose=False)
        unnamed = [AudioPrompt(np.ones(16_000, np.float32) * 0.1, "w40", "w9")]
        with pytest.raises(ConfigurationError, match="key of its own"):
            trainer(gallery).validate(module(), data(unnamed), verbose=False)
        assert not (tmp_path / "page.html").exists()
