"""Scorers on their own, and their table of names."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrouter_pl import AudioTokenPruner
from headrouter_pl.errors import ConfigurationError, UnknownNameError
from headrouter_pl.functional import select_tokens
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers import SelectivityRouter
from headrouter_pl.scorers import (
    SCORERS,
    FastVScorer,
    HeadRouterScorer,
    Probe,
    RandomScorer,
    Scorer,
    ScoringInputs,
    StrideScorer,
    get_scorer,
)

torch.set_num_threads(1)


def batch_of(seen: list[int], counts: list[int], attention: Tensor | None = None) -> ScoringInputs:
    mask = torch.arange(max(seen)) < torch.tensor(seen)[:, None]
    return ScoringInputs(mask, torch.tensor(counts), attention)


def kept_by(scorer: Scorer, inputs: ScoringInputs) -> list[list[int]]:
    kept = select_tokens(scorer.score(inputs), inputs.audio_mask, inputs.counts)
    return [row.nonzero().flatten().tolist() for row in kept]


@st.composite
def budgets(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    seen = draw(st.lists(st.integers(1, 200), min_size=1, max_size=4))
    return seen, [draw(st.integers(1, n)) for n in seen]


@settings(max_examples=200, deadline=None)
@given(budgets())
def test_stride_spaces_evenly(budget: tuple[list[int], list[int]]) -> None:
    seen, counts = budget
    for kept, n, count in zip(kept_by(StrideScorer(), batch_of(seen, counts)), seen, counts, strict=True):
        assert len(kept) == count
        gaps = [b - a for a, b in pairwise(kept)]
        assert not gaps or max(gaps) - min(gaps) <= 1
        # The ends are no longer than a gap: no stretch of the clip goes unheard.
        assert kept[0] <= n // count
        assert n - 1 - kept[-1] <= n // count


def test_stride_of_a_sample_without_audio() -> None:
    assert kept_by(StrideScorer(), batch_of([4, 0], [2, 0])) == [[1, 3], []]


@settings(max_examples=200, deadline=None)
@given(budgets(), st.integers(0, 5))
def test_random_does_not_see_the_rest_of_the_batch(budget: tuple[list[int], list[int]], seed: int) -> None:
    seen, counts = budget
    together = kept_by(RandomScorer(seed), batch_of(seen, counts))
    assert together == kept_by(RandomScorer(seed), batch_of(seen, counts))
    for kept, n, count in zip(together, seen, counts, strict=True):
        assert kept_by(RandomScorer(seed), batch_of([n], [count])) == [kept]


def test_random_depends_on_the_seed_alone() -> None:
    inputs = batch_of([100], [50])
    torch.manual_seed(1)
    first = kept_by(RandomScorer(0), inputs)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert kept_by(RandomScorer(0), inputs) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert kept_by(RandomScorer(1), inputs) != first


def test_random_is_spread_over_the_clip() -> None:
    kept = torch.zeros(10, 100)
    for seed in range(10):
        kept[seed, kept_by(RandomScorer(seed), batch_of([100], [50]))[0]] = 1
    assert (kept.view(10, 4, 25).sum((0, 2)) - 125).abs().max() < 40


def test_random_under_another_default_device() -> None:
    inputs = batch_of([5], [2])
    with torch.device("meta"):
        assert RandomScorer().score(inputs).shape == (1, 5)


def test_fastv_is_the_mean_of_heads() -> None:
    attention = torch.rand(2, 3, 5)
    importance = FastVScorer().score(batch_of([5, 4], [2, 2], attention))
    torch.testing.assert_close(importance, sum(attention[:, h] for h in range(3)) / 3)


def test_probes() -> None:
    assert get_scorer("fastv").probe == Probe(rotary=True, queries="last", keys="all", layers=None)
    assert get_scorer("fastv-norope").probe == Probe(rotary=False, queries="last", keys="all", layers=None)
    assert get_scorer("headrouter").probe == Probe(rotary=False, queries="prompt", keys="audio", layers=None)
    assert get_scorer("segmentwise").probe == get_scorer("fastv").probe
    assert get_scorer("scout").probe == Probe(rotary=True, queries="last", keys="audio", layers=None, pool=4)
    assert get_scorer("dart").probe is None
    assert get_scorer("oracle").probe is None
    assert get_scorer("random").probe is None
    assert get_scorer("stride").probe is None
    probe = HeadRouterScorer(HeadProfile("x", layers=(0, 2)), queries="last").probe
    assert probe == Probe(queries="last", layers=(0, 2))


def test_queries_that_the_profile_was_not_fitted_on() -> None:
    profile = HeadProfile("x", weights=torch.full((3, 4), 0.25))
    assert HeadRouterScorer(profile, queries="prompt").probe == Probe()
    with pytest.raises(ConfigurationError, match=r"'x' was fitted on queries='prompt', and says nothing of 'last'"):
        HeadRouterScorer(profile, queries="last")


def test_which_layers_a_probe_means() -> None:
    assert Probe().resolve(layer=3, num_layers=30) == (2,)
    assert Probe(layers=(0, 2)).resolve(layer=3, num_layers=30) == (0, 2)
    assert Probe(pool=4).resolve(layer=1, num_layers=30) == (21,)
    assert Probe(pool=4).resolve(layer=1, num_layers=2) == (0,)
    assert Probe(pool=4, layers=(17, 20)).resolve(layer=1, num_layers=30) == (17, 20)


def test_only_what_is_named_is_read() -> None:
    assert [name for name in SCORERS if get_scorer(name).reads_keys] == ["dart"]
    assert not any(get_scorer(name).reads_embeddings for name in SCORERS)


def test_only_routing_by_prompt_needs_prompts() -> None:
    assert HeadRouterScorer(router="joint").needs_prompts
    assert HeadRouterScorer(router="prompt").needs_prompts
    assert not HeadRouterScorer(router="selectivity").needs_prompts
    assert not any(get_scorer(name).needs_prompts for name in SCORERS if name != "headrouter")


def test_headrouter_with_a_calibrated_profile() -> None:
    """Route by selectivity, mix the weights, weigh the heads: all of it again in loops."""
    profile = HeadProfile(
        "x",
        types=("semantic", "sound"),
        families=("semantic", "acoustic"),
        weights=torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]]),
        centroids=torch.tensor([[0.1, 0.2, 0.1], [0.4, 0.2, 0.3]]),
        bandwidth=0.2,
    )
    inputs = batch_of([6, 4], [2, 2])
    raw = torch.rand(2, 3, 6).masked_fill(~inputs.audio_mask[:, None], 0)
    inputs.attention = raw / raw.sum(-1, keepdim=True)
    importance = HeadRouterScorer(profile, "selectivity").score(inputs)
    assert profile.weights is not None
    assert profile.centroids is not None
    assert inputs.probabilities is not None
    for b, n in enumerate((6, 4)):
        attention = inputs.attention[b, :, :n].double()
        s = 1 + (attention * attention.log()).sum(1) / torch.tensor(n).double().log()
        gates = torch.tensor([float(torch.exp(-((s - mu) ** 2).sum() / (2 * 0.2**2))) for mu in profile.centroids])
        route = (gates / gates.sum()).tolist()
        assert inputs.probabilities[b].tolist() == pytest.approx(route, abs=1e-5)
        assert inputs.families["semantic"][b].item() == pytest.approx(route[0], abs=1e-5)
        weights = [route[0] * float(profile.weights[0, h]) + route[1] * float(profile.weights[1, h]) for h in range(3)]
        for j in range(n):
            wanted = sum(weights[h] * float(attention[h, j]) for h in range(3))
            assert importance[b, j].item() == pytest.approx(wanted, abs=1e-5)
    assert inputs.types == ("semantic", "sound")


def test_headrouter_smooths_as_its_profile_says() -> None:
    inputs = batch_of([6, 4], [2, 2])
    raw = torch.rand(2, 3, 6).masked_fill(~inputs.audio_mask[:, None], 0)
    inputs.attention = raw / raw.sum(-1, keepdim=True)
    plain, smooth = (
        HeadRouterScorer(HeadProfile("x", smoothing=width), "selectivity").score(inputs) for width in (0, 1)
    )
    for b, n in enumerate((6, 4)):
        for j in range(n):
            wanted = plain[b, max(0, j - 1) : min(n, j + 2)].mean()
            assert smooth[b, j].item() == pytest.approx(wanted.item(), abs=1e-6)


def test_headrouter_with_signed_weights_on_log_attention() -> None:
    """Types are mixed by their weights, not by their scores after some nonlinearity."""
    signed = torch.tensor([[0.7, -0.3, 0.0], [-0.1, 0.1, 0.8]])
    centroids = torch.tensor([[0.1, 0.2, 0.1], [0.1, 0.2, 0.1]])  # as likely as each other
    profile = HeadProfile("x", ("semantic", "sound"), ("semantic", "acoustic"), signed, centroids, features="log")
    inputs = batch_of([6, 4], [2, 2])
    raw = torch.rand(2, 3, 6).masked_fill(~inputs.audio_mask[:, None], 0)
    inputs.attention = raw / raw.sum(-1, keepdim=True)
    importance = HeadRouterScorer(profile, "selectivity").score(inputs)
    mixed = signed.mean(0).tolist()
    for b, n in enumerate((6, 4)):
        for j in range(n):
            wanted = sum(mixed[h] * math.log(n * float(inputs.attention[b, h, j]) + 1e-3) for h in range(3))
            assert importance[b, j].item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("given_", "nearest"),
    [("fastV", "fastv"), ("head_router", "headrouter"), ("strides", "stride"), ("fastv-no-rope", "fastv-norope")],
)
def test_unknown_scorer(given_: str, nearest: str) -> None:
    for make in (get_scorer, lambda name: AudioTokenPruner(scorer=name)):
        with pytest.raises(UnknownNameError, match=f"Unknown scorer '{given_}'. Did you mean '{nearest}'") as caught:
            make(given_)
        assert all(name in str(caught.value) for name in SCORERS)


def test_unknown_names_below_the_scorer() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown router 'selectivty'\. Did you mean 'selectivity'"):
        AudioTokenPruner(router="selectivty")
    with pytest.raises(UnknownNameError, match=r"Unknown profile 'genric'\. Did you mean 'generic'"):
        AudioTokenPruner(profile="genric")
    with pytest.raises(UnknownNameError, match=r"Unknown scorer 'xyzzy'\. Known"):
        AudioTokenPruner(scorer="xyzzy")


@pytest.mark.parametrize("scorer", ["fastv", "fastv-norope", "random", "stride", FastVScorer()])
@pytest.mark.parametrize("options", [{"router": "selectivity"}, {"router": SelectivityRouter()}, {"profile": "sharp"}])
def test_router_and_profile_belong_to_headrouter(scorer: str | Scorer, options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="settings of the scorer named 'headrouter'"):
        AudioTokenPruner(scorer=scorer, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"router": "selectivity"}, {"profile": "sharp"}], ids=str)
def test_router_and_profile_beside_a_scorer_object(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        AudioTokenPruner(scorer=HeadRouterScorer(), **options)  # type: ignore[arg-type]


def test_a_scorer_passes_through() -> None:
    scorer = StrideScorer()
    assert get_scorer(scorer) is scorer
    assert AudioTokenPruner(scorer=scorer).scorer is scorer
