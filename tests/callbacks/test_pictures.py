"""HeadRouterPictures: what reaches which logger, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import tiny_pocket
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from headrouter_pl import HeadRouterCallback, LALMModule
from headrouter_pl.callbacks import HeadRouterPictures
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule
from headrouter_pl.errors import ConfigurationError

pytest.importorskip("matplotlib")
torch.set_num_threads(1)

NAMES = ["selectivity", "head_weights", "retention", "route"]


class ImageLogger(Logger):
    """Takes images as W&B's logger does."""

    name, version, experiment = "images", "0", None

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, np.ndarray]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images += [(key, image) for image in images]

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def run(*callbacks: L.Callback, logger: Any, batches: int = 4, stage: str = "validate") -> None:
    records = [
        AudioPrompt(tiny_pocket.noise(i, 1), tiny_pocket.PROMPTS[i % 3], "w9", f"{i}") for i in range(2 * batches)
    ]
    module = LALMModule(tiny_pocket.build(), tiny_pocket.make_processor(), generate={"max_new_tokens": 2})
    data = AudioPromptDataModule(module.processor, **{stage: records}, batch_size=2)  # type: ignore[arg-type]
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    getattr(trainer, stage)(module, datamodule=data)


class TestLoggers:
    def test_images_every_so_many_batches(self) -> None:
        logger = ImageLogger()
        run(HeadRouterCallback(0.4, layer=2), HeadRouterPictures(2), logger=logger, batches=5)
        assert [name for name, _ in logger.images] == 2 * [f"headrouter/validate/{name}" for name in NAMES]
        for _, image in logger.images:
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert image.std() > 5  # something is drawn
        first, second = (dict(logger.images[i : i + 4])["headrouter/validate/retention"] for i in (0, 4))
        assert (first != second).any()  # of other samples

    def test_tensorboard(self, tmp_path: Path) -> None:
        event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        run(HeadRouterCallback(0.4), HeadRouterPictures(2), logger=TensorBoardLogger(tmp_path, "", ""), stage="test")
        events = event_accumulator.EventAccumulator(str(tmp_path))
        events.Reload()
        assert sorted(events.Tags()["images"]) == sorted(f"headrouter/test/{name}" for name in NAMES)
        assert [event.step for event in events.Images("headrouter/test/route")] == [2, 4]

    def test_a_logger_that_takes_none_is_warned_of_once(self, tmp_path: Path) -> None:
        pictures = HeadRouterPictures(1)
        with pytest.warns(UserWarning, match="CSVLogger takes no images") as warned:
            run(HeadRouterCallback(0.4), pictures, logger=CSVLogger(tmp_path))
        assert len([one for one in warned if "takes no images" in str(one.message)]) == 1
        with pytest.warns(UserWarning, match="has no logger"):
            run(HeadRouterCallback(0.4), pictures, logger=False)

    def test_a_scorer_without_heads(self) -> None:
        logger = ImageLogger()
        run(HeadRouterCallback(0.4, scorer="stride"), HeadRouterPictures(4), logger=logger, stage="predict")
        assert [name for name, _ in logger.images] == ["headrouter/predict/retention"]

    def test_stages_that_are_not_pruned(self) -> None:
        logger = ImageLogger()
        run(HeadRouterCallback(0.4, stages=["test"]), HeadRouterPictures(1), logger=logger)
        assert logger.images == []

    def test_process_zero_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(L.Trainer, "is_global_zero", False)
        logger = ImageLogger()
        run(HeadRouterCallback(0.4), HeadRouterPictures(1), logger=logger)
        assert logger.images == []


def test_refusals() -> None:
    with pytest.raises(ConfigurationError, match="every_n_batches"):
        HeadRouterPictures(0)
    with pytest.raises(ConfigurationError, match="has none"):
        run(HeadRouterPictures(1), logger=False)
