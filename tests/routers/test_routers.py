"""Routers by selectivity, by prompt and by both, against their formulas."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrouter_pl.errors import HeadRouterError, ProfileMismatchError, UnknownNameError
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers import (
    ROUTERS,
    FixedRouter,
    JointRouter,
    PromptPrior,
    PromptRouter,
    Router,
    SelectivityRouter,
    UniformRouter,
    get_router,
)

torch.set_num_threads(1)

HEADS = 5
TYPES = ("semantic", "sound", "voice")
FAMILY_OF = {"semantic": "semantic", "acoustic": "acoustic", "sound": "acoustic", "voice": "acoustic"}
PROMPTS = ["Transcribe the audio.", "Which instrument is playing?", "Is the speaker sad?"]


def profile_of(types: Sequence[str] = TYPES, *, centroids: bool = True, bandwidth: float = 0.3) -> HeadProfile:
    gen = torch.Generator().manual_seed(3)
    return HeadProfile(
        "x",
        types=tuple(types),
        families=tuple(FAMILY_OF.get(name, "acoustic") for name in types),
        centroids=torch.rand(len(types), HEADS, generator=gen) if centroids else None,
        bandwidth=bandwidth,
    )


def some_selectivity(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(batch, HEADS, generator=torch.Generator().manual_seed(seed))


def gates(profile: HeadProfile, row: Tensor) -> list[float]:
    assert profile.centroids is not None
    values = []
    for centroid in profile.centroids:
        distance = sum((float(s) - float(mu)) ** 2 for s, mu in zip(row, centroid, strict=True))
        values.append(math.exp(-distance / (2 * profile.bandwidth**2)))
    return values


def normalised(values: Sequence[float]) -> list[float]:
    return [value / sum(values) for value in values]


class FakeClassifier(PromptRouter):
    """Says what it is told, and counts how often it is asked."""

    def __init__(self, answers: dict[str, dict[str, float]], families: Any = None) -> None:
        super().__init__(families=families)
        self.answers = answers
        self.asked: list[str] = []
        self.types_ = np.array(sorted(next(iter(answers.values()))))
        self.classes_ = np.array(["acoustic", "semantic"])
        self.families_ = {name: "semantic" if name == "semantic" else "acoustic" for name in self.types_}

    def predict_type_proba(self, prompts: Any) -> Any:
        self.asked += prompts
        return np.array([[self.answers[p][t] for t in self.types_] for p in prompts])


ANSWERS = {
    "a": {"voice": 0.2, "semantic": 0.7, "sound": 0.1},
    "b": {"voice": 0.5, "semantic": 0.1, "sound": 0.4},
    "c": {"voice": 0.0, "semantic": 0.6, "sound": 0.4},
}


# By selectivity


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.1, 0.3, 2.0]))
def test_selectivity_router_equals_the_formula(seed: int, bandwidth: float) -> None:
    profile, seen = profile_of(bandwidth=bandwidth), some_selectivity(2, seed)
    route = SelectivityRouter().route(profile, None, seen)
    for b in range(2):
        assert route[b].tolist() == pytest.approx(normalised(gates(profile, seen[b])), rel=1e-4, abs=1e-7)


def test_selectivity_router_is_sure_at_a_centroid() -> None:
    profile = profile_of(bandwidth=0.01)
    assert profile.centroids is not None
    route = SelectivityRouter().route(profile, None, profile.centroids)
    torch.testing.assert_close(route, torch.eye(3))


def test_selectivity_router_far_from_all_centroids_is_finite() -> None:
    route = SelectivityRouter().route(profile_of(bandwidth=1e-6), None, some_selectivity())
    assert route.isfinite().all()
    torch.testing.assert_close(route.sum(1), torch.ones(3))


def test_uniform_router_hears_nothing() -> None:
    for prompts in (None, ["who speaks?", "what is said?", "which bird?"]):
        route = UniformRouter().route(profile_of(bandwidth=0.01), prompts, some_selectivity())
        torch.testing.assert_close(route, torch.full((3, 3), 1 / 3))


def test_without_centroids_every_type_is_as_likely() -> None:
    route = SelectivityRouter().route(profile_of(centroids=False), None, some_selectivity())
    torch.testing.assert_close(route, torch.full((3, 3), 1 / 3))


# By prompt


def test_prior_tells_what_the_classifier_tells() -> None:
    classifier, prompt = PromptRouter.default(), "Whose voice says the third digit?"
    types, families = PromptPrior()._probabilities(prompt)
    assert list(types.values()) == pytest.approx(classifier.predict_type_proba([prompt])[0])
    assert list(families.values()) == pytest.approx(classifier.predict_proba([prompt])[0])
    assert [*types, *families] == [*classifier.types_, *classifier.classes_]


def test_prior_of_a_classifier_that_is_fitted_anew() -> None:
    prompts = ["Transcribe it.", "What is said?", "Who is speaking?", "Is it a man?"]
    classifier = PromptRouter().fit(prompts, ["semantic", "semantic", "voice", "voice"])
    prior, profile = PromptPrior(classifier), profile_of(("semantic", "voice"))
    before = prior.route(profile, prompts[:1], some_selectivity(1))
    classifier.fit(prompts, ["voice", "voice", "semantic", "semantic"])
    after = prior.route(profile, prompts[:1], some_selectivity(1))
    assert before[0, 0] > 0.5 > after[0, 0]
    torch.testing.assert_close(after, PromptPrior(classifier).route(profile, prompts[:1], some_selectivity(1)))


def test_prior_is_aligned_by_the_names_of_types() -> None:
    router = PromptPrior(FakeClassifier(ANSWERS))
    for types in (TYPES, ("voice", "semantic", "sound")):
        route = router.route(profile_of(types), ["a", "b"], some_selectivity(2))
        for row, prompt in zip(route, "ab", strict=True):
            assert row.tolist() == pytest.approx([ANSWERS[prompt][t] for t in types])


def test_prior_of_some_of_the_types_is_renormalised() -> None:
    route = PromptPrior(FakeClassifier(ANSWERS)).route(profile_of(("voice", "sound")), ["b"], some_selectivity(1))
    assert route[0].tolist() == pytest.approx([5 / 9, 4 / 9])


@pytest.mark.parametrize("types", [("semantic", "acoustic"), ("acoustic", "semantic")])
def test_prior_is_aligned_by_the_names_of_families(types: tuple[str, ...]) -> None:
    route = PromptPrior(FakeClassifier(ANSWERS)).route(profile_of(types), ["a", "b"], some_selectivity(2))
    for row, semantic in zip(route, (0.7, 0.1), strict=True):
        assert row.tolist() == pytest.approx([semantic if t == "semantic" else 1 - semantic for t in types])


@pytest.mark.parametrize(
    "router", [PromptPrior(FakeClassifier(ANSWERS)), JointRouter(PromptPrior(FakeClassifier(ANSWERS)))]
)
def test_types_that_the_classifier_does_not_know(router: Router) -> None:
    with pytest.raises(
        ProfileMismatchError, match=r"\['semantic', 'sound', 'voice'\].*'x' has \['semantic', 'music'\]"
    ):
        router.route(profile_of(("semantic", "music")), ["a"], some_selectivity(1))


def test_an_impossible_type_stays_impossible() -> None:
    for router in (PromptPrior(FakeClassifier(ANSWERS)), JointRouter(PromptPrior(FakeClassifier(ANSWERS)))):
        route = router.route(profile_of(), ["c"], some_selectivity(1))
        assert route.isfinite().all()
        assert route[0, TYPES.index("voice")] == 0


def test_prior_without_prompts_is_flat() -> None:
    route = PromptPrior(FakeClassifier(ANSWERS)).route(profile_of(), None, some_selectivity())
    torch.testing.assert_close(route, torch.full((3, 3), 1 / 3))


def test_a_prompt_is_classified_once() -> None:
    classifier = FakeClassifier(ANSWERS)
    router = PromptPrior(classifier)
    first = router.route(profile_of(), ["a", "b", "a"], some_selectivity())
    assert classifier.asked == ["a", "b"]
    assert torch.equal(router.route(profile_of(), ["a", "b", "a"], some_selectivity()), first)
    assert classifier.asked == ["a", "b"]
    assert torch.equal(first[0], first[2])


def test_the_cache_is_bounded() -> None:
    classifier = FakeClassifier(ANSWERS)
    router = PromptPrior(classifier, cache_size=1)
    for prompt in "abab":
        router.route(profile_of(), [prompt], some_selectivity(1))
    assert classifier.asked == list("abab")


def test_the_shipped_classifier() -> None:
    route = PromptPrior().route(profile_of(), PROMPTS, some_selectivity())
    default = PromptRouter.default()
    wanted = default.predict_type_proba(PROMPTS)[:, [list(default.types_).index(t) for t in TYPES]]
    np.testing.assert_allclose(route.numpy(), wanted, rtol=1e-5)
    assert [TYPES[i] for i in route.argmax(1)] == ["semantic", "sound", "voice"]
    families = PromptPrior().route(profile_of(("semantic", "acoustic")), PROMPTS, some_selectivity())
    np.testing.assert_allclose(families[:, 0].numpy(), route[:, 0].numpy(), rtol=1e-5)


def test_an_empty_prompt_is_routed() -> None:
    route = JointRouter().route(profile_of(), [""], some_selectivity(1))
    torch.testing.assert_close(route.sum(1), torch.ones(1))


# By both


def test_joint_is_the_normalised_product() -> None:
    profile, seen = profile_of(), some_selectivity(2)
    route = JointRouter(PromptPrior(FakeClassifier(ANSWERS))).route(profile, ["a", "b"], seen)
    for b, prompt in enumerate("ab"):
        likelihood = gates(profile, seen[b])
        product = [ANSWERS[prompt][t] * likelihood[i] for i, t in enumerate(TYPES)]
        assert route[b].tolist() == pytest.approx(normalised(product), rel=1e-4)


def test_joint_without_prompts_is_the_likelihood() -> None:
    profile, seen = profile_of(), some_selectivity()
    joint = JointRouter().route(profile, None, seen)
    assert torch.equal(joint, SelectivityRouter().route(profile, None, seen))


def test_joint_without_centroids_is_the_prior() -> None:
    router, profile, seen = PromptPrior(FakeClassifier(ANSWERS)), profile_of(centroids=False), some_selectivity(2)
    joint = JointRouter(router).route(profile, ["a", "b"], seen)
    torch.testing.assert_close(joint, router.route(profile, ["a", "b"], seen))


# Copies and names


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda router: pickle.loads(pickle.dumps(router))])
def test_copies_route_the_same(name: str, used: bool, again: Any) -> None:
    router, profile, seen = get_router(name), profile_of(), some_selectivity()
    wanted = router.route(profile, PROMPTS, seen) if used else get_router(name).route(profile, PROMPTS, seen)
    assert torch.equal(again(router).route(profile, PROMPTS, seen), wanted)


def test_a_copy_keeps_its_classifier_and_forgets_its_cache() -> None:
    classifier = PromptRouter().fit(["say", "hear"], ["semantic", "sound"])
    router = PromptPrior(classifier, cache_size=7)
    profile = profile_of(("sound", "semantic"))
    wanted = router.route(profile, ["say"], some_selectivity(1))
    for shared in (copy.deepcopy([router, router]), pickle.loads(pickle.dumps([router, router]))):
        assert shared[0] is shared[1]
        assert shared[0].cache_size == 7
        assert torch.equal(shared[0].route(profile, ["say"], some_selectivity(1)), wanted)


def test_get_router() -> None:
    for name, kind in ROUTERS.items():
        assert type(get_router(name)) is kind
    router = SelectivityRouter()
    assert get_router(router) is router
    classifier = FakeClassifier(ANSWERS)
    joint = get_router(classifier)
    assert isinstance(joint, JointRouter)
    assert joint.prompt.classifier is classifier
    with pytest.raises(UnknownNameError, match=r"Unknown router 'prompts'\. Did you mean 'prompt'"):
        get_router("prompts")


def test_rows_sum_to_one_on_the_profile_s_device_and_dtype() -> None:
    for name in ROUTERS:
        route = get_router(name).route(profile_of(), PROMPTS, some_selectivity().double())
        assert route.dtype == torch.float64
        torch.testing.assert_close(route.sum(1), torch.ones(3, dtype=torch.float64))


# Uncertain prompts


@pytest.mark.parametrize("router", [PromptPrior, JointRouter])
def test_an_uncertain_prompt_is_warned_of_once(router: type[Router]) -> None:
    classifier = FakeClassifier({"x": {"voice": 0.4, "semantic": 0.35, "sound": 0.25}, **ANSWERS})
    prior = PromptPrior(classifier)
    routed = prior if router is PromptPrior else JointRouter(prior)
    weighted = HeadProfile("w", types=TYPES, weights=torch.full((3, HEADS), 1 / HEADS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Sure prompts, profiles whose weights do not depend on the route, and audio that can decide.
        routed.route(weighted, ["a", "b", "c"], some_selectivity())
        routed.route(HeadProfile("uniform"), ["x"], some_selectivity(1))
        both = dataclasses.replace(weighted, centroids=torch.rand(3, HEADS))
        routed.route(both, ["x"], some_selectivity(1))
    with pytest.warns(UserWarning, match=r"too uncertain to trust for the prompt 'x' \(semantic 0\.35"):
        routed.route(weighted, ["a", "x"], some_selectivity(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        routed.route(weighted, ["x"], some_selectivity(1))


def test_fixed_routes_are_certain() -> None:
    router = FixedRouter(["voice", "semantic"])
    assert not router.needs_prompts
    route = router.route(profile_of(), None, some_selectivity(2))
    assert route.tolist() == [[0, 0, 1], [1, 0, 0]]
    router.types = ["sound"]
    assert router.route(profile_of(), PROMPTS[:2], some_selectivity(2)).tolist() == [[0, 1, 0]] * 2
    assert get_router(router) is router


def test_fixed_routes_of_repeated_samples() -> None:
    route = FixedRouter(["voice", "sound"]).route(profile_of(), None, some_selectivity(4))
    assert route.argmax(1).tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("types", [[], ["sound"] * 2, ["sound"] * 4])
def test_fixed_routes_of_another_batch(types: list[str]) -> None:
    with pytest.raises(HeadRouterError, match=f"each of the batch's 3 samples, and was given {len(types)}"):
        FixedRouter(types).route(profile_of(), None, some_selectivity(3))


def test_fixed_routes_of_another_profile() -> None:
    with pytest.raises(ProfileMismatchError, match=r"types \['voice'\], profile 'x' has \['semantic', 'sound'\]"):
        FixedRouter(["voice"]).route(profile_of(("semantic", "sound")), None, some_selectivity(1))
