"""The peers' ways of pruning, which ours is measured beside, do what they are said to do."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import compare_peers
import pytest
import tiny_pocket
import torch
from narrow import narrow
from peers import PEERS, dart, fastv, input_dropping, kv_eviction
from torch import Tensor
from transformers import DynamicCache

import headrouter_pl
from headrouter_pl import AudioTokenPruner
from headrouter_pl.data.audio import read_audio
from headrouter_pl.data.pocket.benchmark import PocketBenchmark
from headrouter_pl.models import find_lalm
from headrouter_pl.models.answering import AudioReader
from headrouter_pl.models.shapes import SHAPES
from headrouter_pl.scorers import Scorer, ScoringInputs

torch.set_num_threads(1)

SECONDS, BEFORE, AFTER = 2.0, 6, 9
AUDIO = 50


@pytest.fixture(scope="module", params=["pocket", "qwen2_5_omni_3b"])
def model(request: pytest.FixtureRequest) -> Any:
    model = narrow(request.param).build()
    with torch.no_grad():  # sharp enough that what is attended to matters
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.mul_(20)
    model.shape = narrow(request.param)
    return model


@pytest.fixture(scope="module")
def inputs(model: Any) -> dict[str, Tensor]:
    return model.shape.inputs(model, SECONDS, before=BEFORE, after=AFTER)


@torch.inference_mode()
def prefill(model: Any, inputs: dict[str, Tensor], **more: Any) -> tuple[Tensor, DynamicCache]:
    cache = DynamicCache()
    return model(**inputs, **more, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1], cache


def held(cache: DynamicCache) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers]


class Chosen(Scorer):
    """Keeps tokens that are given, by their number in the audio."""

    def __init__(self, kept: Sequence[int]) -> None:
        self.kept = list(kept)

    def score(self, inputs: ScoringInputs) -> Tensor:
        score = torch.zeros(inputs.audio_mask.shape)
        score[:, self.kept] = 1.0
        return score


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("ratio", [0.5, 0.1])
def test_fastv_is_ours_with_the_same_scores(model: Any, inputs: dict[str, Tensor], layer: int, ratio: float) -> None:
    plain, _ = prefill(model, inputs)
    with fastv(model, ratio, layer):
        logits, cache = prefill(model, inputs)
    with AudioTokenPruner(ratio, layer=layer, scorer="fastv")(model) as report:
        ours, our_cache = prefill(model, inputs)
    assert len(report.samples[0].kept) == round(AUDIO * ratio)
    assert held(cache) == held(our_cache)
    error = (logits - ours).abs().max()
    assert error < 1e-4
    assert (plain - ours).abs().max() > 100 * error


def test_dart_drops_what_its_choice_does(model: Any, inputs: dict[str, Tensor]) -> None:
    layer, ratio = 2, 0.5
    chosen = by_hand(model, inputs, layer, ratio)
    # Four pivots, then eight shares of 25 // 8 = 3 tokens, as long as fewer than 25 are kept.
    assert len(chosen) == 25
    with dart(model, ratio, layer):
        logits, cache = prefill(model, inputs)
    assert held(cache) == [65, 65, 40, 40]
    with AudioTokenPruner(keep_tokens=len(chosen), layer=layer, scorer=Chosen(chosen))(model):
        ours, _ = prefill(model, inputs)
    plain, _ = prefill(model, inputs)
    error = (logits - ours).abs().max()
    assert error < 1e-4
    assert (plain - ours).abs().max() > 100 * error


def by_hand(model: Any, inputs: dict[str, Tensor], layer: int, ratio: float) -> list[int]:
    """DART's choice, token by token, as numbers in the audio."""
    states: list[Tensor] = []
    hook = find_lalm(model).layers[layer].register_forward_pre_hook(lambda _, args: states.append(args[0][0]))
    _, cache = prefill(model, inputs)
    hook.remove()
    (hidden,), keys = states, cache.layers[layer - 1].keys[0]
    norms = [float(keys[:, position].abs().sum()) for position in range(hidden.shape[0])]
    audio, text = range(BEFORE, BEFORE + AUDIO), range(BEFORE + AUDIO, BEFORE + AUDIO + AFTER)
    pivots = [sorted(part, key=lambda position: -norms[position])[:4] for part in (audio, text)]
    kept = list(pivots[0])
    for pivot in (*pivots[0], *pivots[1]):
        left = [position for position in audio if position not in kept]
        like = {p: float(torch.cosine_similarity(hidden[pivot], hidden[p], dim=0)) for p in left}
        if len(kept) < int(AUDIO * ratio):
            kept += sorted(left, key=lambda position: like[position])[: int(AUDIO * ratio / 8)]
    return [position - BEFORE for position in kept]


def test_input_dropping_is_a_mask_in_every_layer(model: Any, inputs: dict[str, Tensor]) -> None:
    embeds: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        embeds.append(kwargs["inputs_embeds"][0])

    hook = find_lalm(model).decoder.register_forward_pre_hook(look, with_kwargs=True)
    plain, _ = prefill(model, inputs)
    hook.remove()
    audio = embeds[0][BEFORE : BEFORE + AUDIO]
    like = [-2.0, *(float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairwise(audio))]
    kept = sorted(range(AUDIO), key=lambda number: like[number])[:15]
    with input_dropping(model, 0.3):
        logits, cache = prefill(model, inputs)
    assert held(cache) == [BEFORE + 15 + AFTER] * 4
    length = BEFORE + AUDIO + AFTER
    mask = torch.ones(1, length, dtype=torch.long)
    mask[0, [BEFORE + number for number in range(AUDIO) if number not in kept]] = 0
    places = torch.arange(length)[None]
    if "omni" in type(model).__name__.lower():
        places = places.expand(3, 1, -1)
    masked, _ = prefill(model, inputs, attention_mask=mask, position_ids=places)
    error = (logits - masked).abs().max()
    assert error < 1e-4
    assert (plain - masked).abs().max() > 100 * error


def test_kv_eviction_keeps_what_the_question_looks_at(model: Any, inputs: dict[str, Tensor]) -> None:
    plain, full = prefill(model, inputs)
    with kv_eviction(model, 0.3):
        logits, cache = prefill(model, inputs)
    assert torch.equal(logits, plain)  # too late for the prefill
    assert held(cache) == [BEFORE + 15 + AFTER] * 4
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model(**inputs, output_attentions=True, logits_to_keep=1).attentions
    model.set_attn_implementation("sdpa")
    for layer in (0, 3):
        groups = attentions[layer][0, :, -AFTER:].mean(1).unflatten(0, (2, 2)).mean(1)  # [Hkv, L]
        for head, attention in enumerate(groups):
            smooth = torch.nn.functional.avg_pool1d(attention[None], 5, stride=1, padding=2)[0]
            best = smooth[BEFORE : BEFORE + AUDIO].topk(15).indices + BEFORE
            stay = sorted({*range(BEFORE), *best.tolist(), *range(BEFORE + AUDIO, BEFORE + AUDIO + AFTER)})
            for part in ("keys", "values"):
                found, every = getattr(cache.layers[layer], part)[0, head], getattr(full.layers[layer], part)[0, head]
                assert torch.equal(found, every[stay]), (layer, head)


def test_the_loop_is_greedy_decoding() -> None:
    model = narrow("pocket").build()
    inputs = narrow("pocket").inputs(model, SECONDS)
    tokens, _, _ = compare_peers.generate(model, inputs, 4)
    with torch.inference_mode():
        stock = model.generate(**inputs, do_sample=False, max_new_tokens=5, eos_token_id=None)
    assert tokens == stock[0, -5:].tolist()
    assert len(set(tokens)) > 1
    assert compare_peers.generate(model, inputs, 4, eos=tokens[1])[0] == tokens[:1]


@pytest.mark.parametrize("method", compare_peers.METHODS)
def test_decoding_and_leaving(model: Any, inputs: dict[str, Tensor], method: str) -> None:
    """Keeping everything decodes as the model alone, and nothing stays behind."""

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    tokens, _, _ = compare_peers.generate(model, inputs, 4)
    with compare_peers.pruned(method, model, 1.0, 2, compare_peers.FixedPrompt()):
        found, _, steps = compare_peers.generate(model, inputs, 4)
        assert len(steps) == 4
    if method != "dart":  # which keeps a few less, as published
        assert found == tokens
    assert hooks() == before
    assert compare_peers.generate(model, inputs, 4)[0] == tokens


@pytest.mark.parametrize("peer", PEERS.values())
def test_one_sample_at_a_time(model: Any, inputs: dict[str, Tensor], peer: Any) -> None:
    several = model.shape.inputs(model, SECONDS, batch=2)
    with peer(model, 0.5, 2), pytest.raises(ValueError, match="one sample"):
        prefill(model, several)
    with peer(model, 0.5, 2), pytest.raises(ValueError, match="without a mask"):
        prefill(model, inputs, attention_mask=torch.ones_like(inputs["input_ids"]))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Figures of two lengths and two ratios."""
    monkeypatch.setitem(SHAPES, "pocket", narrow("pocket"))
    monkeypatch.setattr(compare_peers, "peak_of", compare_peers.peak_here)
    path = tmp_path / "peers.json"
    arguments = ["--seconds", "2", "3", "--keep_ratios", "1", "0.1", "--threads", "1", "--output", str(path)]
    compare_peers.main([*arguments, "--runs", "1", "--tokens", "2"])
    assert all(row["peak_bytes"] is None for row in json.loads(path.read_text())["rows"])
    compare_peers.main([*arguments, "--peaks"])
    return path


def test_comparison(measured: Path) -> None:
    figures = json.loads(measured.read_text())
    rows = {(row["peer"], row["keep_ratio"], row["length_s"]): row for row in figures["rows"]}
    assert len(rows) == len(figures["rows"]) == 2 * (1 + 2 * (len(PEERS) + len(compare_peers.OURS)))
    for seconds in (2, 3):
        whole = rows["unpruned", 1.0, seconds]
        ratios = ("prefill_ratio", "decode_ratio", "kv_ratio", "peak_memory_ratio")
        assert all(whole[name] == 1 for name in ratios)
        held = {name: rows[name, 0.1, seconds]["kv_bytes"] for name in compare_peers.METHODS[1:]}
        ours, early = held["headrouter"], held["headrouter, evicted early"]
        assert held["fastv"] == held["headrouter-pl, fastv"] == held["headrouter, generic"] == ours
        assert held["kv eviction"] == held["input dropping"] == early < ours < whole["kv_bytes"]
    assert all(row["accuracy"] is None and row["runs"] == 1 for row in rows.values())
    assert all(row["peak_bytes"] > 2**20 for row in rows.values())
    assert {row["peer"] for row in rows.values() if row["layer"] != 3} == {"headrouter-pl, scout"}
    assert "--peaks" in figures["peaks"]["command"]


def test_the_encoder_runs_once() -> None:
    model, calls = narrow("pocket").build(), []
    tower = next(module for name, module in model.named_modules() if name.endswith("audio_tower"))
    inputs = narrow("pocket").inputs(model, SECONDS)
    expected, _ = prefill(model, inputs)
    tower.conv1.register_forward_hook(lambda *_: calls.append(1))
    with compare_peers.encoded_once(model):
        for _ in range(3):
            logits, _ = prefill(model, inputs)
            assert torch.equal(logits, expected)
    assert len(calls) == 1
    prefill(model, inputs)
    assert len(calls) == 2


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bool]:
    """Five questions, and which of them the tiny model answers rightly unpruned, in the order they are asked in."""
    model, processor = tiny_pocket.build(), tiny_pocket.make_processor()
    made = tiny_pocket.make_questions(tmp_path)
    monkeypatch.setattr(compare_peers, "MAX_NEW_TOKENS", 6)
    reader = AudioReader(model, processor, compare_peers.MAX_NEW_TOKENS)
    answers = [reader.answer(reader.read(read_audio(tmp_path / i.audio, 16_000)), i.prompt) for i in made.items]
    known = [replace(i, task="topic", answer=text, options=()) for i, text in zip(made.items, answers, strict=True)]
    known[1] = replace(known[1], answer="w8")
    monkeypatch.setattr(compare_peers.PocketBenchmark, "open", lambda split: PocketBenchmark(tmp_path, known))
    monkeypatch.setattr(compare_peers, "load_model", lambda *_: (model, processor))
    return [item.answer != "w8" for item in compare_peers.choose_items(known, None, None)]


def test_accuracy(questions: list[bool]) -> None:
    asked = compare_peers.ask(compare_peers.parse(["--questions", "9", "--keep_ratios", "1", "0.1", "--threads", "1"]))
    right = asked["right"]
    assert sorted(questions) == [False, *[True] * 4]
    assert asked["tasks"] == ["topic"] * 5
    for method in compare_peers.METHODS:
        if method != "dart":  # which keeps a few less, as published
            assert right[method, 1.0] == questions
        if method != compare_peers.UNPRUNED:
            assert len(right[method, 0.1]) == 5
    assert any(right[method, 0.1] != questions for method in PEERS)


def test_accuracy_goes_into_a_file_of_times(
    measured: Path, questions: list[bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads(measured.read_text())
    arguments = ["--questions", "9", "--keep_ratios", "1", "--threads", "1", "--output"]
    compare_peers.main([*arguments, str(measured)])
    after = json.loads(measured.read_text())
    assert all(after[name] == before[name] for name in ("command", "device", "peaks"))
    assert after["accuracy"]["n"] == 5
    assert "| input dropping" in capsys.readouterr().out
    assert "--questions 9" in after["accuracy"]["command"]
    for old, new in zip(before["rows"], after["rows"], strict=True):
        told = new.pop("accuracy"), new.pop("n")
        assert new == {name: value for name, value in old.items() if name not in ("accuracy", "n")}
        if old["keep_ratio"] != 1:
            assert told == (None, None)
        elif old["peer"] != "dart":
            assert told == (0.8, 5)
    with pytest.raises(SystemExit, match="measure first"):
        compare_peers.main([*arguments, str(tmp_path / "none.json")])
    with pytest.raises(SystemExit, match="of another --layer"):
        compare_peers.main([*arguments, str(measured), "--layer", "2"])
    fewer = [row for row in after["rows"] if row["peer"] != "dart"]
    measured.write_text(json.dumps(after | {"rows": fewer}))
    with pytest.raises(SystemExit, match="no rows of dart"):
        compare_peers.main([*arguments, str(measured)])


def test_the_package_does_not_import_them() -> None:
    for path in Path(headrouter_pl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"peers", "benchmarks"}, path
    assert "peers" in sys.modules
