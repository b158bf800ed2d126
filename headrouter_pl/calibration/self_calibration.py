"""Profiles that a model makes of its own first batches."""

from __future__ import annotations

import torch

from headrouter_pl.calibration.batches import check_attention
from headrouter_pl.calibration.sums import CalibrationSums
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.functional import Queries
from headrouter_pl.models import LalmHandle
from headrouter_pl.profiles import HeadProfile, fingerprint
from headrouter_pl.pruning.measuring import Measured, ObservingEngine
from headrouter_pl.pruning.prompts import PromptReader, Tokenizer
from headrouter_pl.pruning.report import PruningReport
from headrouter_pl.routers import JointRouter, PromptPrior, PromptRouter, Router
from headrouter_pl.scorers import Probe

SELF_CALIBRATION_BATCHES = 8
"""Batches of a stage that ``profile="self"`` measures, where nothing else is said."""


class SelfCalibration:
    """What a model's own batches say of its heads: selectivity by the types that the prompt router gives.

    Types that no prompt is of take the mean of all samples: the profile is for batches like those that were measured.

    Args:
        handle: The model.
        layer: The prune layer K; the layer right below is probed.
        router: Whose prompt router gives the types; the shipped one where it has none.
        queries: Whose attention is measured.

    Attributes:
        sums: What was measured so far.
        batches: Counted by the caller.
        wanted: Batches to measure, set by the caller.
    """

    def __init__(self, handle: LalmHandle, layer: int, router: Router, queries: Queries = "prompt") -> None:
        self.handle = handle
        self.layer = layer
        self.probe = Probe(queries=queries, layers=(layer - 1,))
        if isinstance(router, JointRouter):
            router = router.prompt
        self.prior = router if isinstance(router, PromptPrior) else PromptPrior()
        classifier = self.prior.classifier or PromptRouter.default()
        types = {str(name): classifier.families_[name] for name in classifier.types_}
        self.blank = HeadProfile("self", tuple(types), tuple(types.values()), metadata={"method": "nothing pruned yet"})
        self.sums = CalibrationSums(types, handle.num_heads(layer - 1)[0])
        self.batches = self.wanted = 0

    def engine(self, tokenizer: Tokenizer) -> ObservingEngine:
        """Hooks that measure each prefill, and drop nothing.

        Args:
            tokenizer: Reads the prompts.
        """
        return ObservingEngine(
            self.handle,
            self.probe,
            self._receive,
            prompts=PromptReader(tokenizer),
            report=PruningReport(self.blank),
        )

    def _receive(self, measured: Measured) -> None:
        if measured.prompts is None:
            raise HeadRouterError(
                "profile='self' tells types by the prompts, and a forward shows none (inputs_embeds without "
                "input_ids). Take profile='generic'."
            )
        # A router of prompts reads no more of the attention than how many samples there are.
        likely = self.prior.route(
            self.blank, measured.prompts, torch.zeros(len(measured.prompts), 1, dtype=torch.float32)
        ).argmax(1)
        for row, kind in enumerate(likely.tolist()):
            attention = measured.attention[row, :, measured.audio_mask[row]]
            if attention.shape[1]:
                check_attention(attention, (self.layer - 1,), f"a sample with the prompt {measured.prompts[row]!r}")
                self.sums.add(self.blank.types[kind], attention)

    def profile(self) -> HeadProfile:
        """The profile of what was measured."""
        metadata = {**fingerprint(self.handle, (self.layer - 1,)), "method": "selectivity of the first batches",
                    "layer": str(self.layer)}  # fmt: skip
        return self.sums.profile("self", probe=self.probe, metadata=metadata, share=True)
