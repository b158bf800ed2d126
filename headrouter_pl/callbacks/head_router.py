"""Prunes audio tokens while a Lightning Trainer validates, tests, predicts or fits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from headrouter_pl.calibration import SELF_CALIBRATION_BATCHES, SelfCalibration
from headrouter_pl.callbacks._common import StageCallback, find_tokenizer, sum_over_processes
from headrouter_pl.digest import digest
from headrouter_pl.errors import ConfigurationError, unknown_name
from headrouter_pl.profiles import SHIPPED, HeadProfile
from headrouter_pl.pruning import AudioTokenPruner, PruningReport
from headrouter_pl.pruning.engine import PruningEngine
from headrouter_pl.pruning.prompts import Tokenizer
from headrouter_pl.routers import PromptRouter, Router
from headrouter_pl.scorers import HeadRouterScorer, Scorer

STAGES = ("fit", "validate", "test", "predict")
LOGGED_SUMS = ("samples", "audio_tokens_seen", "audio_tokens_kept", "kv_bytes_held", "kv_bytes_saved")
SUMS = (
    *LOGGED_SUMS,
    "flops",
    "flops_unpruned",
    "unpruned_batches",  # measured instead, for profile="self"
    "routed",
    "semantic",
)  # the last two: samples routed, and their p summed


class HeadRouterCallback(StageCallback):
    """Drops the audio tokens that matter least, in any LightningModule that holds a supported audio language model.

    Example::

        trainer = L.Trainer(callbacks=[HeadRouterCallback()])
        trainer.validate(module, datamodule=data)

    The model is found inside the module (nested, wrapped by peft or by a strategy), pruned from the first batch of a
    stage on, and left as it was at the end of it and on any exception. The validation loop inside ``fit`` is covered by
    ``"validate"``; training steps are pruned with ``"fit"`` among the stages.

    Logged in the validation and test loops: ``headrouter/samples``, ``headrouter/audio_tokens_seen``,
    ``headrouter/audio_tokens_kept``, ``headrouter/kv_bytes_held`` and ``headrouter/kv_bytes_saved`` (sums over the
    rows of all prefills, in all batches and processes: a beam counts as a sample, and so does each step of generation
    without a cache), ``headrouter/keep_ratio`` and ``headrouter/flops_ratio`` (over all tokens and FLOPs) and
    ``headrouter/p_semantic`` (mean over samples). :attr:`totals` has the sums of every stage.

    Args:
        keep_ratio: Share of each sample's audio tokens to keep, in (0, 1]; 0.7 if neither it nor ``keep_tokens`` is
            given.
        keep_tokens: Number of audio tokens to keep in each sample, instead of a ratio.
        layer: The prune layer K; None for 3, or what suits model, profile and scorer, see :class:`AudioTokenPruner`.
        scorer: A name of :data:`headrouter_pl.scorers.SCORERS`, or a scorer.
        router: For the scorer ``"headrouter"``: a name of :data:`headrouter_pl.routers.ROUTERS`, a router, or a fitted
            :class:`PromptRouter`.
        profile: For the scorer ``"headrouter"``: a profile, its name or path, or ``"auto"``. ``"self"`` measures the
            first batches of each stage, which are not pruned, and prunes the others by what it found: head weights by
            selectivity, of the types that the prompt router gives the samples. All processes find the same.
        calibration_batches: How many batches of a stage each process measures for ``profile="self"``; where one has
            fewer, all measure as many as that one.
        tokenizer: Tokenizer or processor of the model, for routing by the prompt; if None, the attribute ``processor``
            or ``tokenizer`` of the LightningModule or of its datamodule.
        evict_early: After each prefill, drop the pruned audio from the KV cache of the layers below K too; see
            :class:`AudioTokenPruner`.
        stages: Where to prune, of ``"fit"``, ``"validate"``, ``"test"`` and ``"predict"``. A trainer may have several
            of these callbacks, each for stages of its own.
        log: Whether to log.

    Attributes:
        report: What was done to the last batch.
        totals: Sums over each stage's last run, over all processes once it has ended; ``unpruned_batches`` are those
            measured for ``profile="self"``, the first ones. A fit that goes on from a checkpoint counts from there on.
        calibrated: The profile of each stage's last run, for ``profile="self"``.

    Raises:
        ConfigurationError: If a value is out of range, or two contradict each other.
    """

    def __init__(
        self,
        keep_ratio: float | None = None,
        *,
        keep_tokens: int | None = None,
        layer: int | None = None,
        scorer: Scorer | str = "headrouter",
        router: Router | PromptRouter | str = "joint",
        profile: str | HeadProfile = "auto",
        calibration_batches: int = SELF_CALIBRATION_BATCHES,
        tokenizer: Tokenizer | None = None,
        evict_early: bool = False,
        stages: Sequence[str] = ("validate", "test", "predict"),
        log: bool = True,
    ) -> None:
        stages = (stages,) if isinstance(stages, str) else tuple(stages)
        for stage in stages:
            if stage not in STAGES:
                raise unknown_name("stage", stage, STAGES)
        if not stages:
            raise ConfigurationError(f"stages is empty; name at least one of {', '.join(STAGES)}.")
        itself = isinstance(profile, str) and profile == "self"
        if calibration_batches < 1:
            raise ConfigurationError(f"calibration_batches must be at least 1, got {calibration_batches}.")
        if calibration_batches != SELF_CALIBRATION_BATCHES and not itself:
            raise ConfigurationError(
                f"calibration_batches={calibration_batches} is for profile='self', and would be ignored with "
                f"profile={profile!r}."
            )
        self.calibration_batches = calibration_batches if itself else 0
        self.pruner = AudioTokenPruner(
            keep_ratio,
            keep_tokens=keep_tokens,
            layer=layer,
            scorer=scorer,
            router=router,
            profile="generic" if itself and scorer == "headrouter" else profile,
            tokenizer=tokenizer,
            evict_early=evict_early,
        )
        self._scorer_settings = _describe(self.pruner.scorer)
        if itself:
            self._scorer_settings |= {"profile": "self", "calibration_batches": calibration_batches}
        self.tokenizer = tokenizer
        self.stages = stages
        self.log_metrics = log
        self.report = PruningReport()
        self.totals: dict[str, dict[str, float]] = {}
        self.calibrated: dict[str, HeadProfile] = {}
        self._measuring: dict[str, SelfCalibration] = {}
        self._nested: list[str] = []
        self._nan: torch.Tensor | None = None  # whether a score of the stage was
        self._prepared: PruningEngine | None = None
        self._attached: PruningEngine | None = None

    # Stages. A stage can lie inside another: validation inside fit.

    @override
    def _on_stage_start(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._nested.append(stage)
        self.totals[stage] = dict.fromkeys(SUMS, 0)
        self.calibrated.pop(stage, None)
        self._measuring.pop(stage, None)
        self._detach_unless_wanted()
        if self._wanted and self._attached is None:
            self._prepared = self._prepare(trainer, module)  # on every rank, and refused before there is a batch
        if (measured := self._measuring.get(stage)) is not None:
            measured.wanted = self._first_batches(trainer, module, stage)

    @override
    def _on_stage_end(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._calibrate(trainer, module, stage)  # fewer batches than were to be measured
        self._nested.pop()
        self._prepared = None
        self._detach_unless_wanted()
        if stage not in self.stages or trainer.sanity_checking:
            return
        self.totals[stage] = self._all_totals(trainer, module, stage)
        self._say(stage)

    def _all_totals(self, trainer: Trainer, module: LightningModule, stage: str) -> dict[str, float]:
        """Sums over all processes."""
        total = torch.tensor([self.totals[stage][name] for name in SUMS], dtype=torch.float64)
        total = sum_over_processes(trainer, module, total)
        return dict(zip(SUMS, total.tolist(), strict=True))

    @property
    def _wanted(self) -> bool:
        """Whether the innermost stage is to be pruned."""
        return bool(self._nested) and self._nested[-1] in self.stages

    def _detach_unless_wanted(self) -> None:
        if not self._wanted or self.calibration_batches:  # with which each stage has a profile of its own
            self._detach()

    def _prepare(self, trainer: Trainer, module: LightningModule) -> PruningEngine:
        # Anew each time: the next module may have another one.
        found = find_tokenizer(module, getattr(trainer, "datamodule", None))
        self.pruner.tokenizer = found if self.tokenizer is None else self.tokenizer
        return self._pruner_or_probe(module, self._nested[-1])

    def _attach_if_wanted(self, trainer: Trainer, module: LightningModule) -> None:
        """Not before a batch starts: only then has another callback, for the stage around, left the model."""
        if self._wanted and self._attached is None:
            engine, self._prepared = self._prepared or self._prepare(trainer, module), None
            engine.attach()
            self._attached, self.report = engine, engine.report

    # Calibration by the first batches

    def _pruner_or_probe(self, module: LightningModule, stage: str) -> PruningEngine:
        """What to attach in a stage: with ``profile="self"``, a probe that drops nothing comes first."""
        if not self.calibration_batches:
            return self.pruner.engine(module)
        assert isinstance(self.pruner.scorer, HeadRouterScorer)
        router = self.pruner.scorer.router
        # Not the last run's until it is measured anew: that may be of another model.
        self.pruner.scorer = HeadRouterScorer(self.calibrated.get(stage, "generic"), router)
        if stage in self.calibrated:
            return self.pruner.engine(module)
        if self.pruner.tokenizer is None:
            raise ConfigurationError(
                "profile='self' tells types by the prompts, and there is no tokenizer to read them. Pass "
                "tokenizer=processor, or take profile='generic'."
            )
        engine = self.pruner.engine(module)  # refuses settings that do not fit the model
        if stage not in self._measuring:
            self._measuring[stage] = SelfCalibration(engine.handle, engine.layer, router)
        return self._measuring[stage].engine(self.pruner.tokenizer)

    def _first_batches(self, trainer: Trainer, module: LightningModule, stage: str) -> int:
        """How many batches each process measures.

        As many in all: they must sum up what they measured after the same batch, for the steps in between may hold sums
        over processes too, which would meet this one.
        """
        there: Sequence[int | float] = [float("inf")]
        if trainer.sanity_checking:
            there = trainer.num_sanity_val_batches
        elif stage == "validate":
            there = trainer.num_val_batches
        elif stage == "test":
            there = trainer.num_test_batches
        elif stage == "predict":
            there = trainer.num_predict_batches
        mine = torch.tensor(int(min(self.calibration_batches, sum(there))), device=module.device)
        return int(trainer.strategy.all_gather(mine).min())

    def _calibrate(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Ends the measuring of a stage, if it is still under way, in all processes at once or one after the other."""
        measured = self._measuring.pop(stage, None)
        if measured is None:
            return
        measured.sums.reduce(partial(sum_over_processes, trainer, module))
        self._detach()
        if not measured.sums.tensors["samples"].sum():
            self.calibrated[stage] = SHIPPED["generic"]
            rank_zero_warn(
                f"profile='self': the first batches of {stage} hold no audio, so the others are pruned by the profile "
                "'generic'."
            )
            return
        self.calibrated[stage] = measured.profile()
        if measured.batches < self.calibration_batches and not trainer.sanity_checking:
            where, pruned = ("", "none") if trainer.world_size == 1 else (" in one of the processes", "hardly any")
            rank_zero_warn(
                f"profile='self': {stage} has {measured.batches} batches{where}, and calibration_batches is "
                f"{self.calibration_batches}, so {pruned} was pruned. Lower it, or calibrate beforehand."
            )

    @contextmanager
    def paused(self, trainer: Trainer, module: LightningModule) -> Iterator[None]:
        """Takes the pruner off the model for the length of a block, in which the model answers as it is.

        Args:
            trainer: The trainer of the run.
            module: Its module.
        """
        report = self.report
        self._detach()
        try:
            yield
        finally:
            self._attach_if_wanted(trainer, module)
            self.report = report  # of the last batch, until the next one starts

    def _detach(self) -> None:
        attached, self._attached = self._attached, None
        if attached is not None:
            attached.detach()

    def _say(self, stage: str) -> None:
        total = self.totals[stage]
        if not total["audio_tokens_seen"]:
            rank_zero_warn(f"HeadRouterCallback saw no audio tokens in {stage}: nothing was pruned.")
            return
        rank_zero_info(
            f"HeadRouterCallback, {stage}: {total['audio_tokens_kept']:.0f} of {total['audio_tokens_seen']:.0f} audio "
            f"tokens kept ({total['audio_tokens_kept'] / total['audio_tokens_seen']:.1%}) in {total['samples']:.0f} "
            f"samples, {total['kv_bytes_saved'] / 2**20:.1f} MiB of KV cache saved, decoder prefill at "
            f"{total['flops'] / total['flops_unpruned']:.1%} of its FLOPs."
        )
        if total["unpruned_batches"]:
            rank_zero_info(
                f"profile='self': the first batches, {total['unpruned_batches']:.0f} in all processes, were measured "
                "and not pruned."
            )

    @override
    def _on_batch_start(
        self, trainer: Trainer, module: LightningModule, stage: str, batch: Any, batch_idx: int
    ) -> None:
        self._attach_if_wanted(trainer, module)
        if self._attached is not None:
            self.report = self._attached.report
        self.report.clear()

    @override
    def _on_batch_end(self, trainer: Trainer, module: LightningModule, stage: str, outputs: Any, batch: Any) -> None:
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
            if prefill.importance is not None:  # read once the stage is over: a device need not be waited for
                valid = prefill.audio_valid.to(prefill.importance.device, non_blocking=True)
                found = (prefill.importance.isnan() & valid).any()
                self._nan = found if self._nan is None else self._nan.to(found.device) | found
        if (measured := self._measuring.get(stage)) is not None:
            totals["unpruned_batches"] += 1
            measured.batches += 1
            if measured.batches == measured.wanted:
                report = self.report
                self._calibrate(trainer, module, stage)
                self._attach_if_wanted(trainer, module)
                self.report = report  # of the last batch, until the next one starts

    @override
    def _on_epoch_end(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Logs sums over all processes."""
        if self._nan is not None and bool(self._nan):
            warnings.warn(
                f"{stage}: {type(self.pruner.scorer).__name__} gave scores that are NaN. Such tokens are dropped, "
                "whatever they hold. Check the recordings, the model's weights and dtype (float16 overflows where "
                "bfloat16 does not), and the scorer, if it is your own.",
                UserWarning,
                stacklevel=2,
            )
        self._nan = None
        if stage == "predict":
            return  # where Lightning logs nothing
        # Not batch by batch: a process whose batches hold no audio would be missing from a reduction others wait in.
        # If it is still under way: of a loader without a length, only the end shows how many batches there are.
        self._calibrate(trainer, module, stage)
        if stage not in self.stages or not self.log_metrics:
            return
        total = self._all_totals(trainer, module, stage)
        if not total["audio_tokens_seen"]:
            return
        metrics = {name: total[name] for name in LOGGED_SUMS}
        metrics["keep_ratio"] = total["audio_tokens_kept"] / total["audio_tokens_seen"]
        metrics["flops_ratio"] = total["flops"] / total["flops_unpruned"]
        if total["unpruned_batches"]:
            metrics["unpruned_batches"] = total["unpruned_batches"]
        if total["routed"]:
            metrics["p_semantic"] = total["semantic"] / total["routed"]
        for name, value in metrics.items():
            # The same in every process already; sync_dist only tells Lightning so.
            module.log(f"headrouter/{name}", value, on_step=False, on_epoch=True, sync_dist=True)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        self._nan = None
        self._nested.clear()
        self._measuring.clear()
        self._prepared = None
        self._detach()

    # Checkpoints

    def _settings(self) -> dict[str, Any]:
        pruner = self.pruner
        return {
            "keep_ratio": pruner.keep_ratio,
            "keep_tokens": pruner.keep_tokens,
            "layer": pruner.layer,
            "evict_early": pruner.evict_early,
            **self._scorer_settings,
            "stages": list(self.stages),
        }

    @property
    @override
    def state_key(self) -> str:
        """One for the stages: a trainer may prune validation by one callback and testing by another."""
        return self._generate_state_key(stages=sorted(self.stages))

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for other in find_pruners(trainer):
            if other is not self and (both := sorted(set(other.stages) & set(self.stages))):
                raise ConfigurationError(
                    f"Two HeadRouterCallbacks prune {', '.join(both)}. Give each stages of its own."
                )

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = {key: state for key, state in checkpoint.get("callbacks", {}).items()
                 if key.startswith(type(self).__qualname__)}  # fmt: skip
        if self.state_key not in saved and len(saved) == 1 == len(find_pruners(trainer)):
            (state,) = saved.values()
            self.load_state_dict(state)  # of other stages, which it says

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"settings": self._settings(), "totals": self.totals}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.totals = {**state_dict["totals"], **self.totals}  # what this trainer has run itself holds
        given, saved = self._settings(), state_dict["settings"]
        if changed := [name for name in {**given, **saved} if given.get(name) != saved.get(name)]:
            rank_zero_warn(
                "HeadRouterCallback goes on with other settings than the checkpoint was written with: "
                + ", ".join(f"{name} {given.get(name)!r} (was {saved.get(name)!r})" for name in changed)
            )


def _describe(scorer: Scorer) -> dict[str, Any]:
    """What a run that goes on must find again: names to read, and a digest of all that a scorer was made with."""
    told: dict[str, Any] = {"scorer": type(scorer).__name__}
    if isinstance(scorer, HeadRouterScorer):
        told |= {"profile": "auto" if scorer.auto else scorer.profile.name, "router": type(scorer.router).__name__}
    return {**told, "scorer_digest": digest(scorer)}


def find_pruners(trainer: Trainer, stage: str | None = None) -> list[HeadRouterCallback]:
    """The trainer's callbacks that prune, in a stage or in any."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    pruners = [callback for callback in callbacks if isinstance(callback, HeadRouterCallback)]
    return [pruner for pruner in pruners if stage is None or stage in pruner.stages]
