"""PromptRouter, its evaluation and the prompts that come with it."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.utils import estimator_checks

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.routers import PromptRouter
from headrouter_pl.routers.evaluation import (
    evaluate,
    evaluate_shipped,
    expected_calibration_error,
    format_report,
)
from headrouter_pl.routers.prompt import shipped_prompts

PROMPTS = ["Transcribe.", "What is said?", "Who is speaking?", "Is he sad?", "Which instrument?", "A dog?"]
TYPES = ["semantic", "semantic", "voice", "voice", "sound", "sound"]


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    return shipped_prompts()


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return evaluate_shipped()


@pytest.fixture(scope="module")
def router() -> PromptRouter:
    return PromptRouter.default()


# What it knows


def test_cross_validated_scores(report: dict[str, Any]) -> None:
    """Measured over 4 shuffles: family .887 ± .009, type .844 ± .011, ECE .010 and .020."""
    scores = report["cross_validated"]
    assert scores["family"]["accuracy"] > 0.86
    assert scores["type"]["accuracy"] > 0.81
    assert scores["family"]["log_loss"] < 0.29
    assert scores["family"]["ece"] < 0.045
    assert scores["type"]["ece"] < 0.055
    assert all(group["family_accuracy"] > 0.70 for group in scores["languages"].values())


def test_heldout_scores(report: dict[str, Any]) -> None:
    """Measured: family .856 ± .037, type .756 ± .045; the bounds are about two and a half errors below."""
    assert report["heldout"]["n"] == 90
    assert report["heldout"]["family"]["accuracy"] > 0.76
    assert report["heldout"]["type"]["accuracy"] > 0.65


def test_swapped_labels_control(records: list[dict[str, str]]) -> None:
    """Fitted on swapped families, it must be wrong about as often as it was right."""
    swap = {"semantic": "acoustic", "voice": "semantic", "sound": "semantic"}
    swapped = PromptRouter().fit([r["prompt"] for r in records], [swap[r["type"]] for r in records])
    heldout = shipped_prompts(heldout=True)
    assert swapped.score([r["prompt"] for r in heldout], [r["type"] for r in heldout]) < 0.35


def test_shuffled_labels_control(records: list[dict[str, str]]) -> None:
    """Labels without meaning teach nothing: types at chance, whatever the wording."""
    labels = np.random.default_rng(0).permutation([r["type"] for r in records])
    scores = evaluate([r["prompt"] for r in records], labels.tolist(), folds=3)["cross_validated"]["type"]
    assert scores["accuracy"] < 0.41  # chance .33 to .35, three standard errors above


@pytest.mark.parametrize(
    ("prompt", "family"),
    [
        ("Please transcribe the audio.", "semantic"),
        ("请把音频转写成文字", "semantic"),
        ("Traduce el audio al francés.", "semantic"),
        ("Résume ce que dit le locuteur.", "semantic"),
        ("Was wird im Gespräch gesagt?", "semantic"),
        ("What is the gender of the person speaking?", "acoustic"),
        ("说话人的性别是男还是女", "acoustic"),
        ("¿Qué instrumentos se oyen?", "acoustic"),
        ("Quel genre de musique entend-on ?", "acoustic"),
        ("Welches Geräusch ist zu hören?", "acoustic"),
        ("Does the speaker say that he is angry?", "semantic"),
        ("What is the speaker saying about the music?", "semantic"),
        ("How does she sound while reading the recipe?", "acoustic"),
    ],
)
def test_languages_and_hard_ones(router: PromptRouter, prompt: str, family: str) -> None:
    assert router.predict([prompt])[0] == family


def test_placeholders_case_and_accents_do_not_matter(router: PromptRouter) -> None:
    plain = router.predict_type_proba(["quelle emotion percoit-on ?"])
    for prompt in ("Quelle ÉMOTION perçoit-on ?", "<|AUDIO|>" * 200 + "quelle emotion percoit-on ?"):
        np.testing.assert_allclose(router.predict_type_proba([prompt]), plain, atol=1e-12)


# What it promises as an estimator


def test_shapes_order_and_sums(router: PromptRouter) -> None:
    assert router.classes_.tolist() == ["acoustic", "semantic"]
    assert router.types_.tolist() == ["semantic", "sound", "voice"]
    families, types = router.predict_proba(PROMPTS), router.predict_type_proba(PROMPTS)
    assert families.shape == (6, 2)
    assert types.shape == (6, 3)
    np.testing.assert_allclose(families.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(families[:, 1], types[:, 0], atol=1e-12)
    np.testing.assert_allclose(families[:, 0], types[:, 1] + types[:, 2], atol=1e-12)
    assert (router.predict(PROMPTS) == router.classes_[families.argmax(1)]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_any_text_gives_probabilities(prompts: list[str]) -> None:
    proba = PromptRouter.default().predict_type_proba(prompts)
    assert np.isfinite(proba).all()
    assert (proba > 0).all()
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("types", [["semantic", "voice", "sound"], ["semantic", "acoustic", "acoustic"]])
def test_agrees_with_scikit_learn(types: list[str]) -> None:
    """The quick sum over n-grams is the vectorizers' matrix times the weights, for two types and for more."""
    records = shipped_prompts()[::7]
    names = dict(zip(["semantic", "voice", "sound"], types, strict=True))
    prompts, labels = [r["prompt"] for r in records], [names[r["type"]] for r in records]
    vectorizers: list[Any] = PromptRouter()._vectorizers()  # type: ignore[assignment]
    model = LogisticRegression(C=80.0, max_iter=1000)
    model.fit(sparse.hstack([v.fit_transform(prompts) for v in vectorizers]).tocsr(), labels)
    unseen = [r["prompt"] for r in shipped_prompts(heldout=True)]
    expected = model.predict_proba(sparse.hstack([v.transform(unseen) for v in vectorizers]).tocsr())
    router = PromptRouter().fit(prompts, labels)
    assert isinstance(vectorizers[0], TfidfVectorizer)
    assert router.types_.tolist() == model.classes_.tolist()
    np.testing.assert_allclose(router.predict_type_proba(unseen), expected, atol=1e-12)


def test_two_families_and_own_types() -> None:
    two = PromptRouter().fit(PROMPTS, ["semantic"] * 2 + ["acoustic"] * 4)
    assert two.types_.tolist() == ["acoustic", "semantic"]
    np.testing.assert_array_equal(two.predict_proba(PROMPTS), two.predict_type_proba(PROMPTS))
    mapping = {"asr": "semantic", "people": "acoustic", "noise": "acoustic"}
    own = PromptRouter(families=mapping).fit(PROMPTS, ["asr", "asr", "people", "people", "noise", "noise"])
    assert own.families_ == mapping
    assert own.predict(["transcribe"])[0] == "semantic"
    assert own.score(PROMPTS, TYPES) == own.score(PROMPTS, ["asr"] * 2 + ["noise"] * 4) == 1.0


def test_fit_takes_arrays_and_is_deterministic() -> None:
    first = PromptRouter().fit(np.array(PROMPTS), np.array(TYPES))
    second = PromptRouter().fit(tuple(PROMPTS), iter(TYPES))
    np.testing.assert_array_equal(first.coef_, second.coef_)


def test_params_and_clone() -> None:
    router = PromptRouter(C=3.0, char_ngrams=(2, 3), max_features=50, families={"x": "semantic"})
    copied = clone(router)
    assert copied.get_params() == router.get_params()
    assert copied.set_params(C=4.0).C == 4.0
    with pytest.raises(ValueError, match="Invalid parameter"):
        router.set_params(depth=3)
    fitted = clone(PromptRouter(max_features=50)).fit(PROMPTS, TYPES)
    assert max(map(len, fitted.vocabularies_)) <= 50


def test_cross_val_score_takes_types_and_families(records: list[dict[str, str]]) -> None:
    some = records[::3]
    prompts, types = [r["prompt"] for r in some], [r["type"] for r in some]
    families = ["semantic" if t == "semantic" else "acoustic" for t in types]
    assert cross_val_score(PromptRouter(), prompts, types, cv=3).mean() > 0.7
    assert cross_val_score(PromptRouter(), prompts, families, cv=3, scoring="accuracy").mean() > 0.7


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
    ],
)
def test_scikit_learn_checks(check: Callable[[str, Any], None]) -> None:
    """Those of scikit-learn's checks that feed no numeric matrix."""
    check("PromptRouter", PromptRouter())


def test_default_is_shared_but_safe(router: PromptRouter) -> None:
    again = PromptRouter.default()
    assert again.coef_ is router.coef_
    with pytest.raises(ValueError, match="read-only"):
        again.coef_[0] = 0
    again.fit(PROMPTS, TYPES)
    assert PromptRouter.default().coef_ is router.coef_
    assert len(again.coef_) < len(router.coef_)


def test_deepcopy_predicts_the_same(router: PromptRouter) -> None:
    np.testing.assert_array_equal(copy.deepcopy(router).predict_proba(PROMPTS), router.predict_proba(PROMPTS))


# Files


def test_save_and_load(router: PromptRouter, tmp_path: Path) -> None:
    path = tmp_path / "router.safetensors"
    router.save(path)
    loaded = PromptRouter.load(str(path))
    texts = [r["prompt"] for r in shipped_prompts(heldout=True)] + ["", "🎻 ?"]
    np.testing.assert_allclose(loaded.predict_type_proba(texts), router.predict_type_proba(texts), rtol=0, atol=1e-12)
    assert (loaded.predict(texts) == router.predict(texts)).all()
    assert loaded.get_params() == router.get_params()
    assert loaded.families_ == router.families_
    assert loaded.coef_.dtype == np.float64


def test_save_and_load_own_types(tmp_path: Path) -> None:
    families = {"übersetzen": "semantic", "说话人": "acoustic"}
    labels = ["übersetzen"] * 2 + ["说话人"] * 4
    router = PromptRouter(C=np.float64(2), word_ngrams=(1, 1), families=families).fit(PROMPTS, labels)
    router.save(tmp_path / "own")
    loaded = PromptRouter.load(tmp_path / "own")
    assert loaded.get_params() == router.get_params()
    np.testing.assert_array_equal(loaded.predict_type_proba(PROMPTS), router.predict_type_proba(PROMPTS))
    loaded.fit(PROMPTS, labels)
    np.testing.assert_array_equal(loaded.coef_, router.coef_)


def test_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "router"
    with pytest.raises(HeadRouterError, match=r"no file .*; give a file written by"):
        PromptRouter.load(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(HeadRouterError, match=r"not a safetensors file.*; give a file written by"):
        PromptRouter.load(path)
    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(HeadRouterError, match=r"expected 'headrouter_pl\.PromptRouter'"):
        PromptRouter.load(path)
    with pytest.raises(HeadRouterError, match="router cannot be written"):
        PromptRouter().fit(PROMPTS, TYPES).save(tmp_path / "missing" / "router")


@pytest.mark.parametrize("damage", ["shape", "missing", "json"])
def test_damaged_file_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "router"
    PromptRouter().fit(PROMPTS, TYPES).save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    if damage == "shape":
        arrays["coef"] = arrays["coef"][:-1]
    elif damage == "missing":
        del arrays["intercept"]
    else:
        metadata["types"] = "["
    save_file(arrays, path, metadata)
    with pytest.raises(HeadRouterError, match="damaged"):
        PromptRouter.load(path)


# Bad input


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("Transcribe.", "put it in a list"),
        (b"Transcribe.", "put it in a list"),
        ([], "at least one"),
        (3, "list of prompts"),
        (["Transcribe.", None], "strings, got None"),
        ([1.5], "strings, got 1.5"),
        (np.array([["a", "b"]]), "strings"),
    ],
)
def test_bad_prompts(router: PromptRouter, prompts: Any, message: str) -> None:
    for method in (router.predict, router.predict_proba, router.predict_type_proba):
        with pytest.raises(ValueError, match=message):
            method(prompts)
    with pytest.raises(ValueError, match=message):
        PromptRouter().fit(prompts, TYPES)


@pytest.mark.parametrize(
    ("params", "labels", "message"),
    [
        ({}, TYPES[:-1], "6 prompts and 5 labels"),
        ({}, "semantic", "put it in a list"),
        ({}, ["asr", *TYPES[1:]], r"No family is known for the labels \['asr'\].*PromptRouter\(families="),
        ({}, ["sound"] * 6, "both families"),
        ({}, ["sound", "voice"] * 3, "both families"),
        ({"families": {"sound": "noise"}}, TYPES, "'semantic' or 'acoustic'"),
        ({"C": -1.0}, TYPES, "'C' parameter"),
    ],
)
def test_bad_fit(params: dict[str, Any], labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptRouter(**params).fit(PROMPTS, labels)


def test_not_fitted(tmp_path: Path) -> None:
    router = PromptRouter()
    for method in (router.predict, router.predict_proba, router.predict_type_proba):
        with pytest.raises(NotFittedError):
            method(PROMPTS)
    with pytest.raises(NotFittedError):
        router.save(tmp_path / "router")
    with pytest.raises(NotFittedError):
        router.score(PROMPTS, TYPES)


# Evaluation


def test_evaluate_is_consistent(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report)) == report
    for key in ("cross_validated", "heldout"):
        block = report[key]
        for grain in ("family", "type"):
            confusion = np.array(block[grain]["confusion"])
            assert confusion.sum() == block["n"]
            assert np.trace(confusion) / block["n"] == pytest.approx(block[grain]["accuracy"])
            assert block[grain]["majority"] == pytest.approx(confusion.sum(1).max() / block["n"])
        for group in ("languages", "tasks"):
            assert sum(g["n"] for g in block[group].values()) == block["n"]
            hits = sum(g["n"] * g["family_accuracy"] for g in block[group].values())
            assert hits / block["n"] == pytest.approx(block["family"]["accuracy"])


def test_evaluate_seed_and_repeats(records: list[dict[str, str]]) -> None:
    some = records[::6]
    prompts, types = [r["prompt"] for r in some], [r["type"] for r in some]
    first, again = (evaluate(prompts, types, folds=3, repeats=2, random_state=1) for _ in range(2))
    assert first == again
    singles = [evaluate(prompts, types, folds=3, random_state=s)["cross_validated"] for s in (1, 2)]
    mean = np.mean([s["family"]["accuracy"] for s in singles])
    assert first["cross_validated"]["family"]["accuracy"] == pytest.approx(mean)
    assert first["cross_validated"]["n"] == len(some)
    assert "heldout" not in first
    assert "tasks" not in first["cross_validated"]
    assert "2 times" in format_report(first)


def test_evaluate_refuses() -> None:
    with pytest.raises(ValueError, match="6 prompts and 1 tasks"):
        evaluate(PROMPTS, TYPES, tasks=["asr"])
    with pytest.raises(ValueError, match="repeats"):
        evaluate(PROMPTS, TYPES, repeats=0)
    with pytest.raises(ValueError, match="Held-out types"):
        evaluate(PROMPTS, TYPES, folds=2, heldout=[{"prompt": "x", "type": "music"}])


def test_calibration_error() -> None:
    half = np.full(100, 0.5)
    assert expected_calibration_error(half, np.arange(100) % 2 == 0, bins=5) == pytest.approx(0.0)
    assert expected_calibration_error(np.full(100, 0.9), np.arange(100) % 2 == 0, 1) == pytest.approx(0.4)
    assert expected_calibration_error(np.ones(3), np.zeros(3, bool)) == pytest.approx(1.0)


def test_format_report(report: dict[str, Any]) -> None:
    text = format_report(report)
    assert f"{report['cross_validated']['family']['accuracy']:.3f}" in text
    for word in ("held-out", "5-fold", "ECE", "confusion", "zh", "spoofing"):
        assert word in text


# The prompts


def test_prompt_files(records: list[dict[str, str]]) -> None:
    heldout = shipped_prompts(heldout=True)
    for record in records + heldout:
        assert set(record) == {"prompt", "type", "task", "language"}
        assert record["prompt"].strip() == record["prompt"]
        assert len(record["prompt"]) > 2
        assert record["type"] in {"semantic", "voice", "sound"}
        assert record["language"] in {"en", "zh", "es", "fr", "de"}
    keys = Counter(record["prompt"].casefold().strip() for record in records + heldout)
    assert not [key for key, count in keys.items() if count > 1]
    kinds = {record["task"]: record["type"] for record in records}
    assert all(kinds[record["task"]] == record["type"] for record in records + heldout)


def test_prompt_counts(records: list[dict[str, str]]) -> None:
    assert len(records) >= 1100
    types = Counter(record["type"] for record in records)
    assert max(types.values()) < 1.12 * min(types.values())
    assert 0.70 < np.mean([record["language"] == "en" for record in records]) < 0.80
    per_language = Counter((record["type"], record["language"]) for record in records)
    assert len(per_language) == 15
    assert min(per_language.values()) >= 20
    tasks = Counter(record["task"] for record in records)
    assert len(tasks) >= 35
    assert min(tasks.values()) >= 12
    heldout = shipped_prompts(heldout=True)
    assert Counter(record["type"] for record in heldout) == {"semantic": 30, "voice": 30, "sound": 30}


def test_no_near_duplicates(records: list[dict[str, str]]) -> None:
    """Character trigrams; the bound leaves room for shared benchmark wrappers around different questions."""
    texts = [record["prompt"] for record in records]
    unseen = [record["prompt"] for record in shipped_prompts(heldout=True)]
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)).fit(texts)
    matrix, other = vectorizer.transform(texts), vectorizer.transform(unseen)
    similarity = (matrix @ matrix.T).toarray()
    np.fill_diagonal(similarity, 0)
    assert similarity.max() < 0.82
    assert (other @ matrix.T).max() < 0.65
