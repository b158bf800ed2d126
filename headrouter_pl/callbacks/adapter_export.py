"""Saves what LoRA fine-tuning made, for peft and transformers."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from headrouter_pl.callbacks._common import is_sharded
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.lalm_module import LALMModule

__all__ = ["AdapterExport"]


class AdapterExport(Callback):
    """Saves the adapter at the end of fit in peft's format, and, if asked, a merged checkpoint.

    Example::

        trainer = L.Trainer(callbacks=[AdapterExport("outputs/adapter")])
        trainer.fit(LALMModule("Qwen/Qwen2-Audio-7B-Instruct", lora=LoraConfig(target_modules="all-linear")), data)
        LALMModule("Qwen/Qwen2-Audio-7B-Instruct", adapter="outputs/adapter")

    Of an earlier step, load its Lightning checkpoint (``LALMModule(..., initial_checkpoint=path)``) and call
    :meth:`LALMModule.save_adapter`.

    Args:
        folder: Where the adapter goes.
        merged: Where a checkpoint goes whose weights hold the adapter; none is made if None.

    Raises:
        ConfigurationError: If the module is no LALMModule with an adapter, or is to be merged while it is sharded.
    """

    def __init__(self, folder: str, merged: str | None = None) -> None:
        self.folder = folder
        self.merged = merged

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, LALMModule) or not hasattr(pl_module.model, "peft_config"):
            raise ConfigurationError("AdapterExport needs a LALMModule with lora or adapter.")
        if self.merged is not None and is_sharded(trainer):
            raise ConfigurationError("Sharded weights are not merged: save the adapter, and merge it in one process.")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LALMModule)
        pl_module.save_adapter(self.folder)
        if self.merged is not None:
            pl_module.save_merged(self.merged)
        trainer.strategy.barrier()  # what comes next may read it, in any process
