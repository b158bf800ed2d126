"""The pruner: settings as a value, a context manager on a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from headrouter_pl.errors import ConfigurationError
from headrouter_pl.models import LalmHandle, find_lalm
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.pruning.engine import PruningEngine
from headrouter_pl.pruning.prompts import PromptReader, Tokenizer
from headrouter_pl.pruning.report import PruningReport
from headrouter_pl.routers import PromptRouter, Router
from headrouter_pl.scorers import HeadRouterScorer, Probe, Scorer, get_scorer

DEFAULT_KEEP_RATIO = 0.7
DEFAULT_LAYER = 3
EARLIEST_LAYER = 2  # of the defaults; K = 1 has to be asked for


def prune_layer(handle: LalmHandle, layer: int | None, probe: Probe | None = None) -> int:
    """The prune layer K.

    Args:
        handle: The model.
        layer: K itself, or None for the default.
        probe: The attention that tokens are scored by, if any.

    Returns:
        ``layer``; or if None, the allowed one nearest to 3, or to 2 where layers are looked at in a scout pass. Where
        they are named, and looked at in the model's own pass, the lowest allowed one from 2 on that is above them.
    """
    if layer is not None:
        return layer
    scouting = probe is not None and probe.pool is not None
    if probe is not None and probe.layers and not scouting:
        return max(EARLIEST_LAYER, handle.lowest_layer, max(probe.layers) + 1)
    return max(handle.lowest_layer, min(EARLIEST_LAYER if scouting else DEFAULT_LAYER, handle.highest_layer))


class AudioTokenPruner:
    """Drops the audio tokens that matter least, from decoder layer K on.

    Example::

        with AudioTokenPruner(keep_ratio=0.3)(model) as report:
            model.generate(**inputs)
        print(report)

    Args:
        keep_ratio: Share of each sample's audio tokens to keep, in (0, 1]; 0.7 if ``keep_tokens`` is not given either.
        keep_tokens: Number of audio tokens to keep in each sample, instead of a ratio.
        layer: The prune layer K: layers 0..K-1 see every token. None for 3, for 2 where tokens are scored in a scout
            pass, or for the layer above those that the profile was measured at, but not below 2; where the model does
            not allow it, the nearest that it does.
        scorer: A name of :data:`headrouter_pl.scorers.SCORERS`, or a scorer.
        router: For the scorer ``"headrouter"``: a name of :data:`headrouter_pl.routers.ROUTERS`, a router, or a fitted
            :class:`PromptRouter`.
        profile: For the scorer ``"headrouter"``: a profile, its name or path, or ``"auto"``.
        tokenizer: Tokenizer or processor of the model, for routing by the prompt. Without it routing is by audio alone.
        evict_early: After each prefill, drop the pruned audio from the KV cache of the layers below K too. Saves their
            share of it, and costs what decoding hears there. Prefills stay as they are; decoding equals the same model
            with the dropped keys masked in all layers. Without a cache it does nothing. Dynamic and static caches.

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
        evict_early: bool = False,
    ) -> None:
        if keep_ratio is not None and keep_tokens is not None:
            raise ConfigurationError(f"Give keep_ratio or keep_tokens, not both (got {keep_ratio} and {keep_tokens}).")
        if keep_ratio is None and keep_tokens is None:
            keep_ratio = DEFAULT_KEEP_RATIO
        if keep_ratio is not None and not 0 < keep_ratio <= 1:
            raise ConfigurationError(f"keep_ratio must be in (0, 1], got {keep_ratio}.")
        if keep_tokens is not None and keep_tokens < 1:
            raise ConfigurationError(f"keep_tokens must be at least 1, got {keep_tokens}.")
        if layer is not None and layer < 1:
            raise ConfigurationError(f"layer must be at least 1 (layers 0..K-1 see every token), got {layer}.")
        if tokenizer is not None and not hasattr(tokenizer, "batch_decode"):
            raise ConfigurationError(
                f"tokenizer must be a tokenizer or processor with batch_decode, got {type(tokenizer).__name__}."
            )
        if scorer == "headrouter" and isinstance(profile, str) and profile == "self":
            raise ConfigurationError(
                "profile='self' measures the first batches of a stage: HeadRouterCallback takes it. Here, fit a "
                "profile beforehand (headrouter-pl calibrate) and name its file."
            )
        self.keep_ratio = keep_ratio
        self.keep_tokens = keep_tokens
        self.layer = layer
        self.scorer = get_scorer(scorer, router=router, profile=profile)
        self.tokenizer = tokenizer
        self.evict_early = evict_early
        if scorer != "headrouter" and (router != "joint" or profile != "auto"):
            raise ConfigurationError(
                f"router and profile are settings of the scorer named 'headrouter', and would be ignored by {scorer!r}."
            )
        self._warned = False

    @contextmanager
    def __call__(self, model: nn.Module, *, audio_mask: Tensor | None = None) -> Iterator[PruningReport]:
        """Prunes every forward of a model for as long as the context lasts.

        Args:
            model: A supported audio language model, or any module that holds one.
            audio_mask: Bool tensor ``[B, L]`` where the audio is, in the first forward and those as long; for forwards
                that are given ``inputs_embeds`` alone, or models whose config names no placeholder.

        Yields:
            What is really kept, filled as forwards run.

        Raises:
            UnsupportedModelError: If the model cannot be pruned exactly.
            HeadRouterError: If a setting does not fit it. The model is left as it was.
        """
        with self.engine(model, audio_mask=audio_mask) as report:
            yield report

    def engine(self, model: nn.Module, *, audio_mask: Tensor | None = None) -> PruningEngine:
        """The hooks for a model, not attached yet: ``with pruner(model)`` is ``with pruner.engine(model)``.

        Args:
            model: See :meth:`__call__`.
            audio_mask: The same.
        """
        handle = find_lalm(model)
        if self.scorer.needs_prompts and self.tokenizer is None and not self._warned:
            self._warned = True
            warnings.warn(
                "No tokenizer: prompts cannot be read, so routing is by audio alone. Pass tokenizer=processor.",
                UserWarning,
                stacklevel=4,
            )
        layer = prune_layer(handle, self.layer, self.scorer.probe)
        scorer = self.scorer.for_model(handle, layer)
        return PruningEngine(
            handle,
            scorer,
            layer=layer,
            keep_ratio=self.keep_ratio,
            keep_tokens=self.keep_tokens,
            report=PruningReport(scorer.profile if isinstance(scorer, HeadRouterScorer) else None),
            prompts=None if self.tokenizer is None else PromptReader(self.tokenizer),
            evict_early=self.evict_early,
            audio_mask=audio_mask,
        )
