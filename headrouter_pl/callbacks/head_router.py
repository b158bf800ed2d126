"""Prunes audio tokens while a Lightning Trainer validates, tests, predicts or fits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from headrouter_pl.errors import ConfigurationError, unknown_name
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.pruning import AudioTokenPruner, PruningReport
from headrouter_pl.pruning.prompts import Tokenizer
from headrouter_pl.routers import PromptRouter, Router
from headrouter_pl.scorers import Scorer

STAGES = ("fit", "validate", "test", "predict")
LOGGED_SUMS = ("samples", "audio_tokens_seen", "audio_tokens_kept", "kv_bytes_held", "kv_bytes_saved")
SUMS = (
    *LOGGED_SUMS,
    "flops",
    "flops_unpruned",
    "routed",
    "semantic",
)  # the last two: samples routed, and their p summed


class HeadRouterCallback(Callback):
    """Drops the audio tokens that matter least, in any LightningModule that holds a supported audio language model.

    Example::

        trainer = L.Trainer(callbacks=[HeadRouterCallback()])
        trainer.validate(module, datamodule=data)

    The model is found inside the module (nested, wrapped by peft or by a strategy), pruned for the length of a stage,
    and left as it was at the end of it and on any exception. The validation loop inside ``fit`` is covered by
    ``"validate"``; training steps are pruned with ``"fit"`` among the stages.

    Logged in the validation and test loops: ``headrouter/samples``, ``headrouter/audio_tokens_seen``,
    ``headrouter/audio_tokens_kept``, ``headrouter/kv_bytes_held`` and ``headrouter/kv_bytes_saved`` (sums over batches
    and processes), ``headrouter/keep_ratio`` and ``headrouter/flops_ratio`` (over all tokens and FLOPs) and
    ``headrouter/p_semantic`` (mean over samples). :attr:`totals` has the sums of every stage.

    Args:
        keep_ratio: Share of each sample's audio tokens to keep, in (0, 1]; 0.7 if neither it nor ``keep_tokens`` is
            given.
        keep_tokens: Number of audio tokens to keep in each sample, instead of a ratio.
        layer: The prune layer K; None for 2, or the lowest above it that the model allows.
        scorer: A name of :data:`headrouter_pl.scorers.SCORERS`, or a scorer.
        router: For the scorer ``"headrouter"``: a name of :data:`headrouter_pl.routers.ROUTERS`, a router, or a fitted
            :class:`PromptRouter`.
        profile: For the scorer ``"headrouter"``: a profile, its name or path, or ``"auto"``.
        tokenizer: Tokenizer or processor of the model, for routing by the prompt; if None, the attribute ``processor``
            or ``tokenizer`` of the LightningModule or of its datamodule.
        stages: Where to prune, of ``"fit"``, ``"validate"``, ``"test"`` and ``"predict"``.
        log: Whether to log.

    Attributes:
        report: What was done to the last batch.
        totals: Sums over each stage's last run, over all processes once it has ended.

    Raises:
        ConfigurationError: If a value is out of range, or two contradict each other.
    """

    def __init__(
        self,
        keep_ratio: float | None = None,
        *,
        keep_tokens: int | None = None,
        layer: int | None = None,
        scorer: str | Scorer = "headrouter",
        router: str | Router | PromptRouter = "joint",
        profile: str | HeadProfile = "auto",
        tokenizer: Tokenizer | None = None,
        stages: Sequence[str] = ("validate", "test", "predict"),
        log: bool = True,
    ) -> None:
        stages = (stages,) if isinstance(stages, str) else tuple(stages)
        for stage in stages:
            if stage not in STAGES:
                raise unknown_name("stage", stage, STAGES)
        if not stages:
            raise ConfigurationError(f"stages is empty; name at least one of {', '.join(STAGES)}.")
        self.pruner = AudioTokenPruner(
            keep_ratio,
            keep_tokens=keep_tokens,
            layer=layer,
            scorer=scorer,
            router=router,
            profile=profile,
            tokenizer=tokenizer,
        )
        self.tokenizer = tokenizer
        self.stages = stages
        self.log_metrics = log
        self.report = PruningReport()
        self.totals: dict[str, dict[str, float]] = {}
        self._nested: list[str] = []
        self._attached: AbstractContextManager[PruningReport] | None = None

    # Stages. A stage can lie inside another: validation inside fit.

    def _enter_stage(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._nested.append(stage)
        self.totals[stage] = dict.fromkeys(SUMS, 0)
        self._follow(trainer, module)

    def _leave_stage(self, trainer: Trainer, module: LightningModule) -> None:
        stage = self._nested.pop()
        self._follow(trainer, module)
        if stage not in self.stages or trainer.sanity_checking:
            return
        self.totals[stage] = self._all_totals(trainer, module, stage)
        self._say(stage)

    def _all_totals(self, trainer: Trainer, module: LightningModule, stage: str) -> dict[str, float]:
        """Sums over all processes."""
        total = torch.tensor([self.totals[stage][name] for name in SUMS], dtype=torch.float64)
        total = trainer.strategy.reduce(total.to(module.device, _widest(module)), reduce_op="sum").cpu()
        return dict(zip(SUMS, total.tolist(), strict=True))

    def _follow(self, trainer: Trainer, module: LightningModule) -> None:
        """Attaches or detaches, as the innermost stage wants it."""
        wanted = bool(self._nested) and self._nested[-1] in self.stages
        if wanted and self._attached is None:
            # Anew each time: the next module may have another one.
            found = _find_tokenizer(module, getattr(trainer, "datamodule", None))
            self.pruner.tokenizer = found if self.tokenizer is None else self.tokenizer
            attached = self.pruner(module)
            self.report = attached.__enter__()
            self._attached = attached
        elif not wanted:
            self._detach()

    def _detach(self) -> None:
        attached, self._attached = self._attached, None
        if attached is not None:
            attached.__exit__(None, None, None)

    def _say(self, stage: str) -> None:
        total = self.totals[stage]
        if not total["audio_tokens_seen"]:
            rank_zero_warn(f"HeadRouterCallback saw no audio tokens in {stage}: nothing was pruned.")
            return
        rank_zero_info(
            f"HeadRouterCallback, {stage}: {total['audio_tokens_kept']:.0f} of {total['audio_tokens_seen']:.0f} audio "
            f"tokens kept ({total['audio_tokens_kept'] / total['audio_tokens_seen']:.1%}) in {total['samples']:.0f} "
            f"prefills, {total['kv_bytes_saved'] / 2**20:.1f} MiB of KV cache saved, decoder prefill at "
            f"{total['flops'] / total['flops_unpruned']:.1%} of its FLOPs."
        )

    def _start_batch(self) -> None:
        self.report.clear()

    def _end_batch(self, stage: str) -> None:
        if self._attached is None:
            return
        totals = self.totals[stage]
        for name, value in self.report.summary().items():
            if name in totals:
                totals[name] += value
        for prefill in self.report.prefills:
            if prefill.families:
                totals["routed"] += len(prefill.seen)
                totals["semantic"] += float(prefill.families["semantic"].sum())

    def _log_epoch(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Logs sums over all processes."""
        # Not batch by batch: a process whose batches hold no audio would be missing from a reduction others wait in.
        if stage not in self.stages or not self.log_metrics:
            return
        total = self._all_totals(trainer, module, stage)
        if not total["audio_tokens_seen"]:
            return
        metrics = {name: total[name] for name in LOGGED_SUMS}
        metrics["keep_ratio"] = total["audio_tokens_kept"] / total["audio_tokens_seen"]
        metrics["flops_ratio"] = total["flops"] / total["flops_unpruned"]
        if total["routed"]:
            metrics["p_semantic"] = total["semantic"] / total["routed"]
        for name, value in metrics.items():
            # The same in every process already; sync_dist only tells Lightning so.
            module.log(f"headrouter/{name}", value, on_step=False, on_epoch=True, sync_dist=True)

    # Lightning's hooks

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter_stage(trainer, pl_module, "fit")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_stage(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._start_batch()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end_batch("fit")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter_stage(trainer, pl_module, "validate")

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_epoch(trainer, pl_module, "validate")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_stage(trainer, pl_module)

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start_batch()

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch("validate")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter_stage(trainer, pl_module, "test")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_epoch(trainer, pl_module, "test")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_stage(trainer, pl_module)

    @override
    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start_batch()

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch("test")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter_stage(trainer, pl_module, "predict")

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_stage(trainer, pl_module)

    @override
    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start_batch()

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch("predict")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._nested.clear()
        self._detach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._nested.clear()
        self._detach()

    # Checkpoints

    def _settings(self) -> dict[str, Any]:
        pruner = self.pruner
        return {
            "keep_ratio": pruner.keep_ratio,
            "keep_tokens": pruner.keep_tokens,
            "layer": pruner.layer,
            "scorer": type(pruner.scorer).__name__,
            "stages": list(self.stages),
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"settings": self._settings(), "totals": self.totals}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.totals = state_dict["totals"]
        given, saved = self._settings(), state_dict["settings"]
        if changed := [name for name in given if given[name] != saved.get(name)]:
            rank_zero_warn(
                "HeadRouterCallback goes on with other settings than the checkpoint was written with: "
                + ", ".join(f"{name} {given[name]!r} (was {saved.get(name)!r})" for name in changed)
            )


def _find_tokenizer(*owners: object) -> Tokenizer | None:
    for owner in owners:
        for name in ("processor", "tokenizer"):
            found = getattr(owner, name, None)
            if hasattr(found, "batch_decode"):
                return found
    return None


def _widest(module: LightningModule) -> torch.dtype:
    """float64 where the device has it: byte counts pass float32's exact integers."""
    return torch.float32 if module.device.type == "mps" else torch.float64
