"""What each choice behind the pocket model's head weights does to its answers, one choice changed at a time.

Each variant is calibrated on the Pocket benchmark's train split (`headrouter-pl calibrate`, whose settings it lists)
and asked the questions of the validation split (`headrouter-pl compare`). A run that was stopped goes on.

    python benchmarks/pocket_variants.py --output docs/data/pocket_variants.json
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headrouter_pl.cli.calibrate import calibrate
from headrouter_pl.cli.compare import compare
from headrouter_pl.cli.tables import dump_figures, format_table
from headrouter_pl.comparison import UNPRUNED
from headrouter_pl.functional import log_attention, select_tokens
from headrouter_pl.models.checkpoints import ADAPTER_FILE
from headrouter_pl.models.pocket_weights import POCKET_ADAPTER
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.results import write_text
from headrouter_pl.scorers import HeadRouterScorer, ScoringInputs, ScoutScorer

LENGTHS = [8, 15, 30, 60]
# A third of the scenes that the shipped profiles are fitted on, for time.
EVIDENCE = {"method": "evidence", "fit": "signed", "lengths": LENGTHS, "max_scenes": 12}
ONE_PASS = EVIDENCE | {"layer": 3, "layers": [0, 1, 2], "smoothing": 4}
SCOUT = EVIDENCE | {"layer": 2, "layers": [*range(8)], "pool": 4, "ridge": 0.1}
DEEP = SCOUT | {"layers": [*range(22)], "rotary": True, "queries": "last"}

# What is changed of each form, by name.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "one pass": {
        "one pass": {},
        "of three times as many questions": {"max_scenes": None},
        "K = 2, two layers": {"layer": 2, "layers": [0, 1]},
        "K = 5, five layers": {"layer": 5, "layers": [*range(5)]},
        "the layer below K alone": {"layers": [2]},
        "last query": {"queries": "last"},
        "largest query, not the mean": {"queries": "max"},
        "rotary": {"rotary": True},
        "no smoothing": {"smoothing": 0},
        "smoothing over a second": {"smoothing": 12},
        "two families": {"types": {"semantic": "semantic", "acoustic": "acoustic"}},
        "positive weights": {"fit": "positive"},
        "weights by mass": {"fit": "mass"},
        "weights by selectivity": {"method": "selectivity", "fit": None},
        # Of short audio alone: it runs the model for each stretch of audio that is left out.
        "weights by utility": {"method": "utility", "lengths": [8, 15]},
        "weights by utility of two seconds": {"method": "utility", "lengths": [8, 15], "stretch": 50},
        "sharper weights": {"scorer": "Sharper"},
        "flatter weights": {"scorer": "Flatter"},
        "largest head, not the mean": {"scorer": "LargestHead"},
        "half of it evenly over ten segments": {"scorer": "SegmentFloor"},
        "a budget for each half minute": {"scorer": "WindowBudget"},
        "of alike tokens one": {"scorer": "Unlike"},
    },
    "headrouter": {
        "headrouter": {},
        "of three times as many questions, scout pass": {"max_scenes": None},
        "four layers": {"layers": [*range(4)]},
        "fifteen layers": {"layers": [*range(15)]},
        "groups of two": {"pool": 2},
        "groups of eight": {"pool": 8},
        "last query, rotary": {"queries": "last", "rotary": True},
        "largest query, scout pass": {"queries": "max"},
        "sharper weights, scout pass": {"scorer": "Sharper"},
        "smoothing, scout pass": {"smoothing": 4},
    },
    "headrouter deep": {
        "headrouter deep": {},
        "of three times as many questions, deep": {"max_scenes": None},
        "all queries, not rotary": {"queries": "prompt", "rotary": False},
        "largest query, deep": {"queries": "max"},
        "positive weights, deep": {"fit": "positive"},
        "ten times the ridge, deep": {"ridge": 1.0},
        "sharper weights, deep": {"scorer": "Sharper"},
        "flatter weights, deep": {"scorer": "Flatter"},
        "layers 15 to 21": {"layers": [*range(15, 22)]},
        "smoothing, deep": {"smoothing": 4},
        "one set of weights for all types": {"router": "uniform"},
        "types less far apart": {"scorer": "Closer"},
        "with the plain scout pass": {"scorer": "WithScout"},
    },
    "scout": {  # nothing to calibrate: settings of the scorer
        "scout": {},
        "scout, layer 17": {"layers": [17]},
        "scout, layer 25": {"layers": [25]},
        "scout, layers 15 to 21": {"layers": [*range(15, 22)]},
        "scout, groups of two": {"pool": 2},
        "scout, groups of eight": {"pool": 8},
        "scout, all queries": {"queries": "prompt"},
        "scout, not rotary": {"rotary": False},
        "scout, K = 4": {"layer": 4},
        "scout, K = 6": {"layer": 6},
        "scout, softmax over all tokens": {"scorer": "FromAllTokens"},
        "scout, geometric mean of heads": {"scorer": "MeanLog"},
        "scout, largest head": {"scorer": "LargestScout"},
        "scout, every second token first": {"scorer": "EverySecond"},
        "scout, the tokens that hold .63 of it": {"scorer": "MassBudget"},
    },
}
_FORMS: dict[str, dict[str, Any]] = {
    "one pass": ONE_PASS,
    "headrouter": SCOUT,
    "headrouter deep": DEEP,
    "scout": {"layer": 2},
}


class LargestHead(HeadRouterScorer):
    """A token by the one weighted head that looks at it most, instead of by the mean."""

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`headrouter_pl.scorers.Scorer.score`."""
        super().score(inputs)
        assert inputs.attention is not None
        assert inputs.head_weights is not None
        return (inputs.attention * inputs.head_weights.clamp(min=0)[..., None]).amax(1)


class Sharper(HeadRouterScorer):
    """Strong heads count for more: weights to this power, with their signs."""

    power = 2.0

    def __init__(self, profile: str | HeadProfile, **settings: Any) -> None:
        super().__init__(profile, **settings)
        assert self.profile.weights is not None
        weights = self.profile.weights.sign() * self.profile.weights.abs() ** self.power
        self.profile = replace(self.profile, weights=weights / weights.abs().sum(1, keepdim=True))


class Flatter(Sharper):
    """Strong heads count for less."""

    power = 0.5


class Closer(HeadRouterScorer):
    """To each type's weights the mean of all types' is added, before their absolute values sum to one again."""

    def __init__(self, profile: str | HeadProfile, **settings: Any) -> None:
        super().__init__(profile, **settings)
        assert self.profile.weights is not None
        weights = self.profile.weights + self.profile.weights.mean(0)
        self.profile = replace(self.profile, weights=weights / weights.abs().sum(1, keepdim=True))


class WithScout(HeadRouterScorer):
    """Scores, and the plain mean of the deepest probed layer's heads, in equal parts (in standard deviations)."""

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`headrouter_pl.scorers.Scorer.score`."""
        weighted = super().score(inputs)
        assert inputs.attention is not None
        heads = inputs.attention.shape[1] // len(self.profile.layers or ())
        plain = inputs.attention[:, -heads:].mean(1)
        return _standardised(weighted, inputs.audio_mask) + _standardised(plain, inputs.audio_mask)


def _standardised(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores less their mean, over their standard deviation, over each sample's audio."""
    count = mask.sum(1, keepdim=True).clamp(min=1)
    centred = (scores - (scores * mask).sum(1, keepdim=True) / count) * mask
    return centred / (centred.square().sum(1, keepdim=True) / count).sqrt().clamp(min=1e-12)


class SegmentFloor(HeadRouterScorer):
    """Half of what is kept are the best tokens of ten segments of equal length, the rest the best of all."""

    segments = 10

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`headrouter_pl.scorers.Scorer.score`."""
        importance = super().score(inputs)
        steps = torch.arange(importance.shape[1], device=importance.device)
        segment = steps * self.segments // inputs.audio_mask.sum(1, keepdim=True).clamp(min=1)
        floors = inputs.counts // (2 * self.segments)
        ahead = torch.zeros_like(inputs.audio_mask)
        for i in range(self.segments):
            ahead |= select_tokens(importance, inputs.audio_mask & (segment == i), floors)
        return importance + ahead * (importance.amax(1, keepdim=True) - importance.amin(1, keepdim=True) + 1)


class WindowBudget(HeadRouterScorer):
    """Of each half minute of audio, a window of the encoder, the same share is kept."""

    window = 750  # audio tokens

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`headrouter_pl.scorers.Scorer.score`."""
        importance = super().score(inputs)
        window = torch.arange(importance.shape[1], device=importance.device) // self.window
        ranks = torch.zeros_like(importance)
        for i in range(int(window.max()) + 1):
            inside = inputs.audio_mask & (window == i)
            order = importance.masked_fill(~inside, -torch.inf).argsort(dim=1, descending=True, stable=True)
            ranks += inside * (1 - order.argsort(1) / inside.sum(1, keepdim=True).clamp(min=1))
        return ranks


class Unlike(HeadRouterScorer):
    """Token by token: the most important one, less by how much its keys are those of one that was chosen before."""

    reads_keys = True
    penalty = 1.0  # standard deviations of importance for equal keys

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`headrouter_pl.scorers.Scorer.score`."""
        importance = super().score(inputs)
        assert inputs.keys is not None
        ranks = torch.zeros_like(importance)
        for row in range(len(importance)):
            there = inputs.audio_mask[row]
            keys = inputs.keys[row, there]
            likeness = F.normalize(keys - keys.mean(0), dim=-1)
            value = importance[row, there]
            value = (value - value.mean()) / value.std().clamp(min=1e-6)
            closest = torch.zeros_like(value)
            order = torch.zeros_like(value)
            for turn in range(int(inputs.counts[row])):
                best = int((value - self.penalty * closest).masked_fill(order > 0, -torch.inf).argmax())
                order[best] = len(value) - turn
                closest = torch.maximum(closest, likeness @ likeness[best])
            ranks[row, there] = order
        return ranks


class FromAllTokens(ScoutScorer):
    """The softmax runs over text too, as in the model: a head that hardly looks at the audio hardly counts."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        assert self.probe is not None
        self.probe = replace(self.probe, keys="all")


class MeanLog(ScoutScorer):
    """The geometric mean of heads: what all of them look at."""

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`headrouter_pl.scorers.Scorer.score`."""
        assert inputs.attention is not None
        return log_attention(inputs.attention, inputs.audio_mask[:, None]).mean(1)


class LargestScout(ScoutScorer):
    """The largest of heads: what any of them looks at."""

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`headrouter_pl.scorers.Scorer.score`."""
        assert inputs.attention is not None
        return inputs.attention.amax(1)


class EverySecond(ScoutScorer):
    """Of each group its even tokens before the odd ones, which count by half: more groups, fewer tokens of each."""

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`headrouter_pl.scorers.Scorer.score`."""
        importance = super().score(inputs)
        odd = torch.arange(importance.shape[1], device=importance.device) % 2
        return importance * (1 - odd / 2)


class MassBudget(ScoutScorer):
    """As few tokens as hold this share of a sample's attention, on average as many as the others keep."""

    mass = 0.63  # a tenth of the tokens, in the mean over the validation questions about 8 to 60 s

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`headrouter_pl.scorers.Scorer.score`."""
        importance = super().score(inputs)
        share = importance / importance.sum(1, keepdim=True)
        held = share.sort(dim=1, descending=True).values.cumsum(1)
        if inputs.counts.device.type != "cpu":  # there, and there alone, they are the engine's own
            raise NotImplementedError("budgets that depend on scores are tried on a CPU alone")
        inputs.counts.copy_(((held < self.mass).sum(1) + 1).clamp(max=inputs.audio_mask.sum(1)))
        return importance


def main() -> None:
    """Calibrates, compares, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", default="shipped", help="as of `headrouter-pl compare`")
    parser.add_argument("--keep_ratio", default=0.1, type=float)
    parser.add_argument("--lengths", default=LENGTHS, type=int, nargs="+", help="seconds of the scenes asked about")
    parser.add_argument("--max_scenes", type=int, help="of each length")
    parser.add_argument("--folder", type=Path, help="profiles and answers; one for each weights by default")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    given = parser.parse_args()
    if given.folder is None:  # a profile that is there is taken, and must be of the same weights
        adapter = (POCKET_ADAPTER if given.weights == "shipped" else Path(given.weights)) / ADAPTER_FILE
        given.folder = Path("outputs/variants") / hashlib.sha256(adapter.read_bytes()).hexdigest()[:8]
    methods = [
        prepare(form, name, changes, given) for form, variants in VARIANTS.items() for name, changes in variants.items()
    ]
    figures = compare(
        methods=methods, keep_ratios=[1.0, given.keep_ratio], tested=list(VARIANTS), weights=given.weights,
        split="validation", lengths=given.lengths, max_scenes=given.max_scenes, dtype="bfloat16",
        details=str(given.folder / "answers.jsonl"), folder=str(given.folder),
    )  # fmt: skip
    figures["command"] = shlex.join(["python", "benchmarks/pocket_variants.py", *sys.argv[1:]])
    rows = table(figures)
    print(format_table(rows))
    if given.output is not None:
        kept = {name: figures[name] for name in ("command", "machine", "weights", "split", "questions")}
        write_text(given.output, dump_figures(kept | {"keep_ratio": given.keep_ratio, "rows": rows}))


def prepare(form: str, name: str, changes: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Calibrates a variant, if there is something to, and it is not done yet; says how ``compare`` runs it."""
    settings = _FORMS[form] | changes
    scorer, router = settings.pop("scorer", None), settings.pop("router", "joint")
    if form == "scout":
        layer, scorer = settings.pop("layer"), f"pocket_variants.{scorer}" if scorer else "scout"
        return {"name": name, "layer": layer, "scorer": scorer, "init_args": settings}
    fitted = not changes.keys() & {"scorer", "router"}  # else it takes the form's own profile
    path = given.folder / f"{(name if fitted else form).replace(' ', '_')}.safetensors"
    if fitted and not path.exists():
        calibrate(weights=given.weights, dtype="float32", output=str(path), **settings)
    return {
        "name": name, "layer": settings["layer"], "profile": str(path), "router": router,
        "scorer": f"pocket_variants.{scorer}" if scorer else "headrouter",
    }  # fmt: skip


def table(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a variant: accuracy by type and in all, same answers, evidence, tokens kept, prefill time, difference."""
    means = {(row["method"], row["type"]): row for row in figures["rows"] if row["task"] == "mean"}
    tests = {(test["a"], test["b"]): test for test in figures["tests"] if test["type"] == "all"}
    rows = []
    for form, name in [("", UNPRUNED), *((form, name) for form, names in VARIANTS.items() for name in names)]:
        whole = means[name, "all"]
        test = tests.get((form, name))
        rows.append({
            "variant": name,
            **{kind: f"{means[name, kind]['accuracy']:.3f}" for kind in ("semantic", "voice", "sound")},
            "all": f"{whole['accuracy']:.3f}",
            "same answers": f"{whole['agreement']:.3f}",
            "evidence kept": f"{whole['evidence_recall']:.3f}",
            "kept": f"{whole['applied_ratio']:.3f}",
            "prefill": f"{whole['cost']:.2f}",
            "same answers, less the form's": "" if test is None else (
                f"{-test['agreement_difference']:+.3f} "
                f"[{-test['agreement_ci95'][1]:+.3f}, {-test['agreement_ci95'][0]:+.3f}]"
            ),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
