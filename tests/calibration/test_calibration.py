"""Calibration: the sums and fits against plain loops, on tiny models, killed and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from reference import masked_from
from scipy.optimize import nnls
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F

from headrouter_pl import AudioTokenPruner, HeadProfile, calibration, tensorfile
from headrouter_pl.calibration import CalibrationSums, ProfileCalibrator, append_answers, calibrate
from headrouter_pl.errors import ConfigurationError, HeadRouterError, UnknownNameError
from headrouter_pl.functional import selectivity
from headrouter_pl.profiles import TYPES
from headrouter_pl.pruning.measuring import DroppingEngine
from headrouter_pl.scorers import HeadRouterScorer, Probe

torch.set_num_threads(1)

FAMILY = "qwen2_audio"
PLACE = {"semantic": "semantic", "sound": "acoustic"}


def attention_of(heads: int, length: int, seed: int) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(heads, length, generator=gen, dtype=torch.float64)).softmax(1)


def planted(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Attention of five heads; head 1 looks at the evidence of semantic samples, head 3 at that of sound."""
    gen = torch.Generator().manual_seed(seed)
    length = int(torch.randint(30, 90, (1,), generator=gen))
    first = int(torch.randint(0, length - 10, (1,), generator=gen))
    evidence = torch.zeros(length, dtype=torch.bool)
    evidence[first : first + 8] = True
    logits = torch.randn(5, length, generator=gen, dtype=torch.float64)
    logits[1 if kind == "semantic" else 3, evidence] += 2.0
    logits[0, evidence] -= 1.5  # looks away from it, whatever the question
    return logits.softmax(1), evidence


def fitted(fit: str, count: int = 20, **options: Any) -> tuple[HeadProfile, CalibrationSums]:
    sums = CalibrationSums(PLACE, 5, fit)
    for seed in range(count):
        for kind in PLACE:
            attention, evidence = planted(kind, seed + 1000 * (kind == "sound"))
            sums.add_evidence(kind, sums.add(kind, attention), evidence)
    return sums.profile("x", probe=Probe(layers=(1,)), metadata={}, **options), sums


# The arithmetic


def test_selectivity_averages_and_spread() -> None:
    sums = CalibrationSums(TYPES, 4)
    seen: dict[str, list[np.ndarray]] = {kind: [] for kind in TYPES}
    for seed in range(30):
        kind = list(TYPES)[seed % 3]
        attention = attention_of(4, 10 + seed, seed)
        sums.add(kind, attention.float())
        mask = torch.ones(1, attention.shape[1], dtype=torch.bool)
        seen[kind].append(selectivity(attention.float().double(), mask).numpy())
    profile = sums.profile("x", probe=Probe(layers=(2,)), metadata={"method": "selectivity"})
    assert profile.centroids is not None
    assert profile.weights is not None
    for row, kind in enumerate(TYPES):
        mean = np.mean(seen[kind], 0)
        assert profile.centroids[row].tolist() == pytest.approx(mean.tolist(), abs=1e-6)
        assert profile.weights[row].tolist() == pytest.approx((mean / mean.sum()).tolist(), abs=1e-5)
    within = np.concatenate([np.array(values) - np.mean(values, 0) for values in seen.values()])
    eigenvalues = np.linalg.eigvalsh(within.T @ within / (30 - 3))
    assert profile.bandwidth == pytest.approx(np.sqrt((eigenvalues**2).sum() / eigenvalues.sum()), rel=1e-6)
    assert profile.metadata["samples"] == '{"semantic": 10, "sound": 10, "voice": 10}'
    assert (profile.layers, profile.features) == ((2,), "attention")


def test_bandwidth_counts_heads_that_vary_together_once() -> None:
    """Two heads that agree are no surer than one."""
    alone, twice = CalibrationSums(PLACE, 1), CalibrationSums(PLACE, 2)
    for seed in range(20):
        attention = attention_of(1, 25, seed)
        for kind in PLACE:
            alone.add(kind, attention)
            twice.add(kind, attention.expand(2, -1))
    one, two = (sums.profile("x", probe=Probe(layers=(0,)), metadata={}).bandwidth for sums in (alone, twice))
    assert two == pytest.approx(one * 2**0.5, rel=1e-6)


@pytest.mark.parametrize("fit", ["positive", "signed"])
def test_regressions_equal_the_plain_way(fit: str) -> None:
    """All tokens of all samples stacked, centred sample by sample, in one least-squares problem."""
    ridge = 0.05
    profile, _ = fitted(fit, ridge=ridge)
    assert profile.weights is not None
    assert profile.features == ("log" if fit == "signed" else "attention")
    for row, kind in enumerate(PLACE):
        xs, ys = [], []
        for seed in range(20):
            attention, evidence = planted(kind, seed + 1000 * (kind == "sound"))
            n = attention.shape[1]
            x = (attention * n + 1e-3).log() if fit == "signed" else attention * n
            u = np.where(evidence, 0.5 / evidence.sum(), 0.5 / (n - evidence.sum()))
            x, y = x.numpy(), evidence.double().numpy()
            x, y = x - (x * u).sum(1, keepdims=True), y - (y * u).sum()
            x = x / np.sqrt((x**2 * u).sum(1).mean())
            xs.append((x * np.sqrt(u / 20)).T)
            ys.append(y * np.sqrt(u / 20))
        stacked, wanted = np.concatenate(xs), np.concatenate(ys)
        alpha = ridge * np.mean(np.diag(stacked.T @ stacked))
        if fit == "signed":
            weights = Ridge(alpha=alpha, fit_intercept=False).fit(stacked, wanted).coef_
        else:
            weights = nnls(np.vstack((stacked, np.sqrt(alpha) * np.eye(5))), np.concatenate((wanted, np.zeros(5))))[0]
        weights = weights / np.abs(weights).sum()
        assert profile.weights[row].tolist() == pytest.approx(weights.tolist(), abs=1e-5)


def test_mass_is_attention_above_chance() -> None:
    profile, _ = fitted("mass")
    assert profile.weights is not None
    for row, kind in enumerate(PLACE):
        excess = np.zeros(5)
        for seed in range(20):
            attention, evidence = planted(kind, seed + 1000 * (kind == "sound"))
            excess += (attention[:, evidence].sum(1) - evidence.double().mean()).numpy() / 20
        excess = np.maximum(excess, 0)
        assert profile.weights[row].tolist() == pytest.approx((excess / excess.sum()).tolist(), abs=1e-6)


@pytest.mark.parametrize("fit", ["positive", "signed", "mass"])
def test_planted_heads_are_found(fit: str) -> None:
    profile, _ = fitted(fit)
    assert profile.weights is not None
    assert profile.weights.argmax(1).tolist() == [1, 3]
    assert profile.weights.max(1).values.min() > 0.4
    assert profile.weights.abs().sum(1).tolist() == pytest.approx([1, 1])
    if fit == "signed":
        assert (profile.weights[:, 0] < -0.1).all()  # what a head that looks away says is used
    else:
        assert (profile.weights[:, 0] == 0).all()


def test_long_evidence_and_long_audio_count_as_short_ones() -> None:
    """Repeating every token of a sample changes nothing that is fitted."""
    once, twice = (CalibrationSums(PLACE, 5, "signed") for _ in range(2))
    for seed in range(6):
        for kind in PLACE:
            attention, evidence = planted(kind, seed)
            once.add_evidence(kind, attention, evidence)
            twice.add_evidence(kind, attention.repeat_interleave(2, 1) / 2, evidence.repeat_interleave(2))
    for name in ("contrasts", "xx", "xy", "excess"):
        torch.testing.assert_close(once.tensors[name], twice.tensors[name])


def test_utility_regresses_rises_on_the_means_of_stretches() -> None:
    sums = CalibrationSums(PLACE, 4, "positive")
    for seed in range(10):
        for kind, head in (("semantic", 2), ("sound", 0)):
            attention = attention_of(4, 40, seed)
            bounds = [(i, i + 8) for i in range(0, 40, 8)]
            rises = torch.stack([attention[head, a:b].mean() for a, b in bounds]) * 3 + 1  # the mean does not matter
            sums.add_utility(kind, sums.add(kind, attention), bounds, rises)
    profile = sums.profile("x", probe=Probe(layers=(0,)), metadata={}, ridge=1e-6)
    assert profile.weights is not None
    assert profile.weights.argmax(1).tolist() == [2, 0]
    assert profile.weights.max(1).values.min() > 0.95


def test_what_says_nothing_is_left_out() -> None:
    sums = CalibrationSums(PLACE, 3, "positive")
    attention = attention_of(3, 12, 0)
    sums.add_evidence("sound", attention, torch.ones(12, dtype=torch.bool))
    sums.add_evidence("sound", attention, torch.zeros(12, dtype=torch.bool))
    sums.add_evidence("sound", torch.full((3, 12), 1 / 12), torch.arange(12) < 3)
    sums.add_utility("sound", attention, [(0, 12)], torch.ones(1))
    assert not sums.tensors["contrasts"].any()
    for kind in PLACE:
        for seed in range(2):
            sums.add(kind, attention_of(3, 12, seed))
    with pytest.raises(HeadRouterError, match="No sample of type 'semantic' tells heads apart"):
        sums.profile("x", probe=Probe(layers=(0,)), metadata={})


def test_heads_that_all_look_away() -> None:
    sums = CalibrationSums(PLACE, 1, "positive")
    evidence = torch.arange(10) < 3
    for kind in PLACE:
        for _ in range(2):
            sums.add_evidence(kind, sums.add(kind, (-evidence.double()).softmax(0)[None]), evidence)
    with pytest.raises(HeadRouterError, match=r"No head looks at what matters in samples of type 'semantic'.*signed"):
        sums.profile("x", probe=Probe(layers=(0,)), metadata={})


@pytest.mark.parametrize("counts", [{"semantic": 5}, {}])
def test_one_type_alone_is_refused(counts: dict[str, int]) -> None:
    sums = CalibrationSums(PLACE, 3)
    for kind, count in counts.items():
        for seed in range(count):
            sums.add(kind, attention_of(3, 12, seed))
    listed = f"every type, got: semantic {counts.get('semantic', 0)}, sound 0"
    with pytest.raises(HeadRouterError, match=rf"{listed}\. Add data of the missing types\.$"):
        sums.profile("x", probe=Probe(layers=(0,)), metadata={})
    three = CalibrationSums(TYPES, 3)
    for kind in list(TYPES)[:2]:
        three.add(kind, attention_of(3, 12, 0))
    with pytest.raises(HeadRouterError, match=r"missing types, or name the types that there are\.$"):
        three.profile("x", probe=Probe(layers=(0,)), metadata={})


def test_one_type_alone_pooled() -> None:
    sums = CalibrationSums(PLACE, 3)
    for seed in range(5):
        sums.add("semantic", attention_of(3, 12, seed))
    profile = sums.profile("x", probe=Probe(layers=(0,)), metadata={}, share=True)
    for tensor in (profile.weights, profile.centroids):
        assert tensor is not None
        assert torch.equal(tensor[0], tensor[1])
    alone = CalibrationSums(PLACE, 3)
    alone.add("sound", attention_of(3, 12, 0))
    assert alone.profile("x", probe=Probe(layers=(0,)), metadata={}, share=True).centroids is None
    with pytest.raises(HeadRouterError, match="samples with audio of every type"):
        CalibrationSums(PLACE, 3).profile("x", probe=Probe(layers=(0,)), metadata={}, share=True)


def test_one_sample_of_each_type_has_no_spread() -> None:
    sums = CalibrationSums(PLACE, 3)
    for seed, kind in enumerate(PLACE):
        sums.add(kind, attention_of(3, 12, seed))
    with pytest.raises(HeadRouterError, match=r"two samples or more of a type, .* got: semantic 1, sound 1"):
        sums.profile("x", probe=Probe(layers=(0,)), metadata={})


# On models


CLIPS = [[[20], [9]], [[12], [7]], [[16], [25]]]
KINDS = [["semantic", "sound"], ["sound", "semantic"], ["semantic", "sound"]]
SPANS = [[[(2, 6)], [(0, 2), (5, 6)]], [[(3, 9)], [(6, 7)]], [[(0, 16)], [(20, 25)]]]


def batches(model: Any, family: str = FAMILY) -> list[dict[str, Any]]:
    made = []
    for seed, (clips, kinds, spans) in enumerate(zip(CLIPS, KINDS, SPANS, strict=True)):
        inputs = tiny.inputs(family, model, clips, seed=seed, text_after=8)
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[0, -2:], labels[1, -4:] = inputs["input_ids"][0, -2:], inputs["input_ids"][1, -4:]
        made.append({"inputs": {**inputs, "labels": labels}, "types": kinds, "evidence": spans,
                     "keys": [f"{seed}/a", f"{seed}/b"]})  # fmt: skip
    return made


SETTINGS = [
    {},
    {"method": "evidence"},
    {"method": "evidence", "fit": "signed", "layers": [0, 1, 2], "layer": 3},
    {"method": "evidence", "fit": "mass", "layers": [1]},
    {"method": "utility", "stretch": 6},
    {"method": "utility", "fit": "signed", "stretch": 6, "queries": "last"},
    {"method": "evidence", "layers": [2, 3], "pool": 3, "rotary": True, "queries": "last", "smoothing": 2},
]


def run(model: Any, data: Any, **settings: Any) -> HeadProfile:
    return calibrate(model, data, progress=False, **{"types": PLACE, **settings})


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_profiles_are_fitted_saved_and_used(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.build(FAMILY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = batches(model)
    profile = run(model, data, **settings)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = run(model, data, **settings)
    layers = tuple(settings.get("layers", (2,)))
    assert profile.layers == layers
    assert profile.smoothing == settings.get("smoothing", 0)
    for mine, its in ((profile.weights, again.weights), (profile.centroids, again.centroids)):
        assert mine is not None
        assert its is not None
        assert mine.shape == (2, len(layers) * tiny.HEADS)
        assert torch.equal(mine, its)
    assert profile.metadata["model_type"] == FAMILY
    assert profile.metadata["layer"] == str(2 if "pool" in settings else max(layers) + 1)
    assert profile.metadata["samples"] == '{"semantic": 3, "sound": 3}'
    profile.save(tmp_path / "mine.safetensors")
    pruner = AudioTokenPruner(
        0.3, layer=settings.get("layer"), profile=str(tmp_path / "mine.safetensors"), router="selectivity"
    )
    scorer = HeadRouterScorer(str(tmp_path / "mine.safetensors"))
    asked = {name: settings.get(name, default) for name, default in {"queries": "prompt", "rotary": False}.items()}
    assert scorer.probe == Probe(**asked, layers=layers, pool=settings.get("pool"))
    with torch.no_grad(), pruner(model) as report:
        model(**{name: value for name, value in data[0]["inputs"].items() if name != "labels"})
    assert [len(sample.kept) for sample in report.samples] == [6, 3]


def test_batching_changes_nothing() -> None:
    model = tiny.build(FAMILY)
    data = batches(model)
    rows = []
    for batch in data:
        for row in range(2):
            inputs = {key: value for key, value in batch["inputs"].items() if key != "labels"}
            alone = tiny.single(FAMILY, model, inputs, row)
            kept = inputs["attention_mask"][row].bool()
            alone["labels"] = batch["inputs"]["labels"][row : row + 1, kept]
            rows.append({"inputs": alone} | {key: [batch[key][row]] for key in ("types", "evidence", "keys")})
    for settings in (*SETTINGS[1:3], SETTINGS[4]):
        together, apart = run(model, data, **settings), run(model, rows, **settings)
        torch.testing.assert_close(together.weights, apart.weights, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together.centroids, apart.centroids, rtol=1e-4, atol=1e-5)


def test_utility_is_the_rise_of_the_answers_nll(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reference, one row and one stretch at a time."""
    model = tiny.build(FAMILY)
    data = batches(model)
    found: list[tuple[list[tuple[int, int]], Tensor]] = []
    monkeypatch.setattr(
        CalibrationSums, "add_utility", lambda self, kind, values, bounds, rises: found.append((bounds, rises))
    )
    calibrator = ProfileCalibrator(model, method="utility", layer=2, stretch=6, types=PLACE)
    calibrator.update(data[0])
    assert [bounds for bounds, _ in found] == [[(0, 5), (5, 10), (10, 15), (15, 20)], [(0, 4), (4, 9)]]
    inputs = {name: value for name, value in data[0]["inputs"].items() if name != "labels"}
    labels = data[0]["inputs"]["labels"]
    audio = tiny.audio_mask(FAMILY, model, inputs["input_ids"])

    def nll(logits: Tensor, row: int) -> float:
        return float(F.cross_entropy(logits[row, :-1], labels[row, 1:], ignore_index=-100))

    with torch.no_grad():
        whole = model(**inputs).logits
        for row, (bounds, rises) in enumerate(found):
            for (first, last), rise in zip(bounds, rises.tolist(), strict=True):
                gone = torch.zeros_like(audio)
                gone[row, audio[row].nonzero()[first:last, 0]] = True
                with masked_from(tiny.layers(FAMILY, model), 2, gone):
                    masked = model(**inputs, use_cache=False).logits
                assert rise == pytest.approx(nll(masked, row) - nll(whole, row), abs=1e-5)


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_killed_run_goes_on(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.calibrator, "SAVE_SECONDS", 0.0)
    model, state = tiny.build(FAMILY), tmp_path / "new" / "state.safetensors"
    data = batches(model)
    measured: list[str] = []
    update = ProfileCalibrator.update

    def counted(self: ProfileCalibrator, batch: Any, name: str = "") -> None:
        measured.append(batch["keys"][0])
        update(self, batch, name)

    monkeypatch.setattr(ProfileCalibrator, "update", counted)

    def dying(count: int) -> Iterator[dict[str, Any]]:
        yield from data[:count]
        raise Killed

    with pytest.raises(Killed):
        run(model, dying(2), state=state, **settings)
    assert [path.name for path in state.parent.iterdir()] == ["state.safetensors"]
    with pytest.raises(Killed):
        run(model, dying(2), state=state, **settings)
    profile = run(model, data, state=state, **settings)
    assert measured == ["0/a", "1/a", "2/a"]  # none twice
    with pytest.warns(UserWarning, match="state.safetensors holds all 3 batches already: none was measured"):
        again = run(model, data, state=state, **settings)  # it stays until the profile is saved
    assert measured == ["0/a", "1/a", "2/a"]
    for fewer in (data[:2], iter(data[:2])):
        with pytest.raises(HeadRouterError, match="is the state of 3 batches, and there are 2: of other data"):
            run(model, fewer, state=state, **settings)
    assert again.weights is not None
    assert torch.equal(again.weights, profile.weights)  # type: ignore[arg-type]
    whole = run(model, data, **settings)
    assert profile.weights is not None
    assert whole.weights is not None
    assert torch.equal(profile.weights, whole.weights)
    assert profile.bandwidth == whole.bandwidth
    assert profile.metadata == whole.metadata


@pytest.mark.parametrize("error", [HeadRouterError, KeyboardInterrupt])
def test_what_was_measured_before_an_error_is_kept(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the batch that it came in, nothing: not even of its first sample."""
    model, state = tiny.build(FAMILY), tmp_path / "state"
    plain, seen = CalibrationSums.add_evidence, []

    def add(self: CalibrationSums, kind: str, attention: Tensor, evidence: Tensor) -> None:
        seen.append(kind)
        if len(seen) == 4:
            raise error
        plain(self, kind, attention, evidence)

    with monkeypatch.context() as patch:
        patch.setattr(CalibrationSums, "add_evidence", add)
        with pytest.raises(error):
            run(model, batches(model), method="evidence", state=state)
    assert ProfileCalibrator(model, types=PLACE, method="evidence").load_state(state) == 1
    goes_on, whole = (run(model, batches(model), method="evidence", state=given) for given in (state, None))
    assert goes_on.weights is not None
    assert whole.weights is not None
    assert torch.equal(goes_on.weights, whole.weights)


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    model, state = tiny.build(FAMILY), tmp_path / "state"
    calibrator = ProfileCalibrator(model, types=PLACE)
    calibrator.update(batches(model)[0])
    calibrator.save_state(state, 1, "mine")
    assert ProfileCalibrator(model, types=PLACE).load_state(state, "mine") == 1
    for settings, changed in (
        ({"types": {"semantic": "semantic", "voice": "acoustic"}}, "types"),
        ({"queries": "last"}, "queries"),
        ({"layer": 3, "layers": [0]}, "probed_layers"),
        ({"method": "evidence"}, "method"),
    ):
        with pytest.raises(HeadRouterError, match=rf"state of another calibration: other {changed}\."):
            ProfileCalibrator(model, **{"types": PLACE, **settings}).load_state(state, "mine")
    with pytest.raises(HeadRouterError, match=r"other data\."):
        calibrator.load_state(state, "yours")
    with pytest.raises(HeadRouterError, match="other num_layers"):
        ProfileCalibrator(tiny.build(FAMILY, num_layers=5), types=PLACE).load_state(state, "mine")
    content = state.read_bytes()
    for broken in (b"", content[:-4], b"text"):
        state.write_bytes(broken)
        with pytest.raises(HeadRouterError, match="holds no state of a calibration"):
            calibrator.load_state(state, "mine")
    state.write_bytes(content)
    header, tensors = tensorfile.read(state)
    tensorfile.write(state, {"samples": tensors["samples"]}, header)
    with pytest.raises(HeadRouterError, match=r"holds no state of a calibration: no selectivity, selectivity_outer\."):
        calibrator.load_state(state, "mine")
    tensorfile.write(state, tensors, {**header, "configuration": "3"})
    with pytest.raises(HeadRouterError, match="holds no state of a calibration"):
        calibrator.load_state(state, "mine")
    HeadProfile("x").save(state)
    with pytest.raises(HeadRouterError, match="format 'headrouter-profile"):
        calibrator.load_state(state, "mine")


def test_the_model_is_measured_without_dropout_and_left_as_it_was() -> None:
    model = tiny.build(FAMILY)
    data = batches(model)
    wanted = run(model, data)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith("layers.0"))).eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(run(model, data).centroids, wanted.centroids)  # type: ignore[arg-type]
    assert [module.training for module in model.modules()] == modes


def test_samples_without_audio_are_passed_over() -> None:
    model = tiny.build(FAMILY)
    data = batches(model)
    mixed = tiny.inputs(FAMILY, model, [[], [8]], seed=7)
    more = [{"inputs": mixed, "types": ["sound", "sound"], "evidence": [[], [(0, 2)]]},
            {"inputs": tiny.inputs(FAMILY, model, [[]], seed=8), "types": ["sound"], "evidence": [[]]}]  # fmt: skip
    for settings in SETTINGS[:2]:
        profile = run(model, [*data, *more], **settings)
        assert profile.metadata["samples"] == '{"semantic": 3, "sound": 4}'


# Bad input


def test_attention_that_is_not_a_number() -> None:
    model = tiny.build(FAMILY)
    data = batches(model)
    with torch.no_grad():
        tiny.layers(FAMILY, model)[1].self_attn.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(HeadRouterError, match=r"0/a: attention is NaN or infinite at layers \[1\]"):
        run(model, data, layers=[0, 1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_answers_whose_likelihood_is_not_a_number(value: float, tmp_path: Path) -> None:
    """Above the probed layers, where attention is finite. What was measured before stays as it was."""
    model, state = tiny.build(FAMILY), tmp_path / "state"
    data = batches(model)
    calibrator = ProfileCalibrator(model, method="utility", stretch=6, types=PLACE)
    calibrator.update(data[0])
    before = {name: tensor.clone() for name, tensor in calibrator.sums.tensors.items()}
    with torch.no_grad():
        tiny.layers(FAMILY, model)[3].self_attn.q_proj.weight[0, 0] = value
    with pytest.raises(HeadRouterError, match="1/a: the answer's negative log-likelihood is NaN or infinite"):
        calibrator.update(data[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in calibrator.sums.tensors.items())
    with pytest.raises(HeadRouterError, match="0/a: the answer's negative log-likelihood"):
        run(model, data, method="utility", stretch=6, state=state)
    assert not state.exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_sample_whose_likelihood_is_not_a_number_is_named(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build(FAMILY)
    data = batches(model)
    plain = DroppingEngine.answer_nll

    def broken(self: DroppingEngine, *args: Any) -> Tensor:
        """Of the second sample, once some of its audio is dropped."""
        found = plain(self, *args)
        return found + torch.tensor([0.0, value]) if len(args) == 3 else found

    monkeypatch.setattr(DroppingEngine, "answer_nll", broken)
    with pytest.raises(HeadRouterError, match="0/b: the answer's negative log-likelihood is NaN or infinite"):
        run(model, data, method="utility", stretch=6)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(3, 21)], r"0/a: evidence \(3, 21\) is outside the audio, which has 20 tokens"),
        ([(-1, 3)], r"0/a: evidence \(-1, 3\) is outside"),
        ([(1, 2), (5, 5)], r"0/a: evidence \(5, 5\) is outside"),
        ([], "0/a: no evidence is given"),
        (None, "0/a: no evidence is given"),
        ([(1.0, 2.5)], r"0/a: evidence \(1.0, 2.5\) must be in whole audio tokens"),
        ([(float("nan"), 2)], r"0/a: evidence \(nan, 2\) is outside"),
        ([(1, 2, 3)], r"0/a: evidence \(1, 2, 3\) is no \(start, end\)"),
        ([3], r"0/a: evidence 3 is no \(start, end\)"),
    ],
)
def test_evidence_outside_the_audio(spans: Any, message: str) -> None:
    model = tiny.build(FAMILY)
    data = batches(model)
    data[0]["evidence"] = [spans, [(0, 1)]]
    with pytest.raises(HeadRouterError, match=message):
        run(model, data, method="evidence")


def test_evidence_in_numbers_of_any_kind() -> None:
    model = tiny.build(FAMILY)
    data = batches(model)
    wanted = run(model, data, method="evidence")
    for kind in (float, np.int64, torch.tensor):
        same = [
            {**batch, "evidence": [[tuple(map(kind, span)) for span in row] for row in batch["evidence"]]}
            for batch in data
        ]
        assert torch.equal(run(model, same, method="evidence").weights, wanted.weights)  # type: ignore[arg-type]


def test_keys_that_a_collate_function_made_a_tensor() -> None:
    model = tiny.build(FAMILY)
    data = [{**batch, "keys": torch.tensor([7, 8])} for batch in batches(model)]
    assert torch.equal(run(model, data).weights, run(model, batches(model)).weights)  # type: ignore[arg-type]
    with pytest.raises(HeadRouterError, match="8: type 'noise' is none of"):
        run(model, [{**data[0], "types": ["sound", "noise"]}])


def test_an_empty_answer() -> None:
    model = tiny.build(FAMILY)
    data = batches(model)
    data[1]["inputs"]["labels"][1] = -100
    with pytest.raises(HeadRouterError, match="1/b: the answer is empty"):
        run(model, data, method="utility")
    del data[0]["inputs"]["labels"]
    with pytest.raises(HeadRouterError, match=r"answers in inputs\['labels'\]"):
        run(model, data, method="utility")


def test_other_bad_batches() -> None:
    model = tiny.build(FAMILY)
    data = batches(model)
    for batch, message in (
        ({**data[0], "types": ["semantic", "music"]}, "0/b: type 'music' is none of semantic, sound"),
        ({**data[0], "types": ["semantic"]}, "batch 0 has 2 samples and 1 types"),
        ({**data[0], "keys": ["x"]}, "batch 0 has 2 samples and 1 keys"),
        ({"inputs": data[0]["inputs"]}, r"'inputs' and 'types', got \['inputs'\]"),
        (data[0]["inputs"]["input_ids"], "got Tensor"),
    ):
        with pytest.raises(HeadRouterError, match=message):
            run(model, [batch])
    for spans in (None, [[(0, 1)]]):
        with pytest.raises(HeadRouterError, match="batch 0: evidence is a list of spans for each sample, 2 here, got"):
            run(model, [{**data[0], "evidence": spans}], method="evidence")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "utilty"}, "Unknown calibration method 'utilty'. Did you mean 'utility'"),
        ({"method": "utility", "fit": "mass"}, "Unknown utility fit 'mass'"),
        ({"fit": "signed"}, "would be ignored"),
        ({"types": {"sound": "acoustic"}}, "two names or more"),
        ({"types": {"a": "b", "c": "acoustic"}}, "two names or more"),
        ({"stretch": 0}, "stretch must be at least 1"),
        ({"ridge": 0.0}, "ridge positive"),
        ({"smoothing": -1}, "smoothing not negative"),
        ({"layer": 2, "layers": [2]}, "below layer 2"),
        ({"layers": []}, "below layer 3"),
        ({"layers": [-1, 0]}, "below layer 2"),
        ({"layers": [1, 1]}, "must differ"),
        ({"layer": 4, "layers": [1]}, "below the model's 4 layers"),
        ({"layers": [4], "pool": 2}, "below layer 4"),
    ],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigurationError, UnknownNameError), match=message):
        ProfileCalibrator(tiny.build(FAMILY), **settings)


# Answers


class Letters:
    """One token a letter."""

    pad_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) % 64 + 8 for letter in text]}


def test_answers_follow_their_prompts() -> None:
    model = tiny.build("audioflamingo3")
    inputs = tiny.inputs("audioflamingo3", model, [[20], [9]])
    length = inputs["input_ids"].shape[1]
    grown = append_answers(inputs, ["abc", "d"], Letters(), ["x", "y"])
    tokens = Letters()("abcd", add_special_tokens=False)["input_ids"]
    assert grown["input_ids"][:, length:].tolist() == [tokens[:3], [tokens[3], 0, 0]]
    assert torch.equal(grown["input_ids"][:, :length], inputs["input_ids"])
    assert grown["attention_mask"][:, length:].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert grown["labels"][:, length:].tolist() == [tokens[:3], [tokens[3], -100, -100]]
    assert (grown["labels"][:, :length] == -100).all()
    assert torch.equal(grown["input_features"], inputs["input_features"])
    with pytest.raises(HeadRouterError, match="y: the answer is empty"):
        append_answers(inputs, ["abc", ""], Letters(), ["x", "y"])
    with pytest.raises(HeadRouterError, match="y: the answer must be a text, got None"):
        append_answers(inputs, ["abc", None], Letters(), ["x", "y"])  # type: ignore[list-item]
    with pytest.raises(HeadRouterError, match=r"1 answers to 2 samples \(x, y\)"):
        append_answers(inputs, ["abc"], Letters(), ["x", "y"])
    right = tiny.inputs("audioflamingo3", model, [[20], [9]], padding_side="right")
    with pytest.raises(HeadRouterError, match="padded on the left"):
        append_answers(right, ["abc", "d"], Letters(), ["x", "y"])
