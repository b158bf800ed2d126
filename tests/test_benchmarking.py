"""Measurements of speed and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from headrouter_pl import AudioTokenPruner, benchmarking
from headrouter_pl.benchmarking import (
    PARTS,
    Run,
    compare_runs,
    count_syncs,
    linear_fit,
    measure,
    part_clock,
    run_once,
    time_routing,
)
from headrouter_pl.pruning.engine import PruningEngine
from headrouter_pl.pruning.prober import Prober

torch.set_num_threads(1)

FAMILY = "audioflamingo3"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.build(FAMILY)


@pytest.fixture(scope="module")
def inputs(model: Any) -> dict[str, Any]:
    made = tiny.inputs(FAMILY, model, [[40], [40]])
    made.pop("attention_mask")
    return made


class Words:
    """A tokenizer, so that prompts are read and routed."""

    def batch_decode(self, sequences: Any, *, skip_special_tokens: bool) -> list[str]:
        return ["What is said?"] * len(sequences)


def engine(model: Any, ratio: float, scorer: str = "headrouter") -> PruningEngine:
    return AudioTokenPruner(ratio, layer=1, scorer=scorer, tokenizer=Words()).engine(model)


def unbound(hooked: PruningEngine) -> list[str]:
    """Methods of an engine that stand on the object, as those replaced by a clock do."""
    owners = (hooked, hooked.prober)
    return [name for owner in owners for name in vars(owner) if hasattr(type(owner), name)]


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class TestRunOnce:
    def test_alone(self, model: Any, inputs: dict[str, Any]) -> None:
        run = run_once(model, inputs, tokens=2)
        assert 0 < run.prefill < run.first_token
        assert run.encoder is not None
        assert run.prefill + run.encoder < run.first_token
        assert run.decode > 0
        assert (run.bare_decode, run.overhead) == (None, {})
        text = model.config.text_config
        length = inputs["input_ids"].shape[1]
        per_layer = 2 * 2 * length * tiny.KV_HEADS * tiny.HEAD_DIM * 4  # samples, keys and values, bytes
        assert run.kv_bytes == text.num_hidden_layers * per_layer

    def test_pruned(self, model: Any, inputs: dict[str, Any]) -> None:
        hooked = engine(model, 0.3)
        run = run_once(model, inputs, hooked, tokens=2)
        summary = hooked.report.summary()
        assert run.kv_bytes == summary["kv_bytes_held"]
        assert summary["kv_bytes_saved"] > 0
        assert summary["samples"] == 2  # of this run alone
        run_once(model, inputs, hooked, tokens=2)
        assert hooked.report.summary()["samples"] == 2
        assert run.bare_decode is not None
        assert run.bare_decode > 0
        assert set(run.overhead) == {*PARTS, "routing"}
        assert all(seconds > 0 for seconds in run.overhead.values())
        assert sum(run.overhead.values()) < run.first_token
        assert hooks(model) == 0
        assert not unbound(hooked)

    def test_nothing_to_decode(self, model: Any, inputs: dict[str, Any]) -> None:
        run = run_once(model, inputs, engine(model, 0.3), tokens=0)
        assert (run.decode, run.bare_decode) == (0.0, None)

    def test_eager_attention(self, model: Any, inputs: dict[str, Any]) -> None:
        model.set_attn_implementation("eager")
        try:
            run = run_once(model, inputs, engine(model, 0.3), tokens=2)
        finally:
            model.set_attn_implementation("sdpa")
        assert run.decode > 0
        assert run.bare_decode is None

    def test_leaves_nothing_behind_an_error(self, model: Any, inputs: dict[str, Any]) -> None:
        hooked = engine(model, 0.3)
        with pytest.raises(ValueError, match="tokens"):  # the model's own: more placeholders than audio
            run_once(model, {**inputs, "input_ids": torch.full_like(inputs["input_ids"], tiny.AUDIO_ID)}, hooked)
        assert hooks(model) == 0
        assert not unbound(hooked)


def test_parts_inside_of_parts_count_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection takes 5 ticks, of which 2 for probing inside of it, where reading a query takes none."""
    ticks = iter([0.0, 1.0, 3.0, 5.0])
    monkeypatch.setattr(benchmarking, "now", lambda: next(ticks))
    hooked = engine(model, 0.5)
    monkeypatch.setattr(Prober, "attention", lambda self, forward: None)
    monkeypatch.setattr(PruningEngine, "_choose", lambda self, forward, hidden: self.prober.attention(forward))
    with part_clock(hooked) as spent:
        hooked._choose(None, None)  # type: ignore[arg-type]
    assert spent == {"layout": 0.0, "probing": 2.0, "selection": 3.0, "routing": 0.0}


def test_runs_take_turns_after_a_warm_up(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []

    def run(model: Any, inputs: Any, engine: Any, *, tokens: int) -> Run:
        order.append(engine)
        return Run(len(order), None, 0, 0, None, 0)

    monkeypatch.setattr(benchmarking, "run_once", run)
    done: list[None] = []
    found = compare_runs(model, {}, {"a": "A", "b": "B"}, runs=2, progress=lambda: done.append(None))  # type: ignore[dict-item]
    assert order == [None, "A", "B"] * 3
    assert len(done) == 9
    assert {name: [run.prefill for run in runs] for name, runs in found.items()} == {
        None: [4, 7], "a": [5, 8], "b": [6, 9]
    }  # fmt: skip


def test_measure(model: Any, inputs: dict[str, Any]) -> None:
    hooked = engine(model, 0.5)
    held = run_once(model, inputs, hooked, tokens=0).kv_bytes
    alone = [Run(prefill, 0.5, 3.0, 0.1, None, 99) for prefill in (2.0, 1.0, 4.0)]
    parts = {"probing": 0.01, "routing": 0.03}
    pruned = [Run(prefill, 0.5, 1.5, 0.09, 0.08, held, parts) for prefill in (0.5, 0.8, 0.6)]
    found = measure(alone, pruned, hooked)
    summary = hooked.report.summary()
    assert found["prefill_ratio"] == 0.3
    assert found["prefill_s"] == [0.6, 0.5, 0.8]
    assert found["prefill_s_unpruned"] == [2.0, 1.0, 4.0]
    assert found["first_token_ratio"] == 0.5
    assert found["decode_ratio"] == 0.9
    assert found["decode_hooks_ratio"] == 1.125
    assert found["overhead_share"] == 0.02
    assert found["overhead_parts_s"] == parts
    assert found["encoder_s"] == [0.5, 0.5, 0.5]
    assert found["ideal_ratio"] == pytest.approx(summary["flops"] / summary["flops_unpruned"], rel=1e-3)
    assert 0.5 < found["ideal_ratio"] < 1
    assert found["kv_bytes"] == found["kv_bytes_formula"] == held
    assert found["kv_bytes_unpruned"] > held
    assert (found["audio_tokens"], found["audio_tokens_kept"]) == (80, 40)
    assert found["runs"] == 3
    nothing_decoded = [Run(1.0, None, 1.0, 0.0, None, held, parts)]
    found = measure(nothing_decoded, nothing_decoded, hooked)
    assert (found["decode_ratio"], found["decode_hooks_ratio"], found["encoder_s"]) == (None, None, None)


PEAKS = """
import sys
sys.path[:0] = PATH
import json

import tiny
import torch

from headrouter_pl import AudioTokenPruner
from headrouter_pl.benchmarking import peak_bytes

torch.set_num_threads(1)
model = tiny.build("audioflamingo3")
inputs = tiny.inputs("audioflamingo3", model, [[20]], padding_side=None)
del inputs["attention_mask"]
engine = AudioTokenPruner(0.5, scorer="fastv").engine(model)
for _ in range(2):  # what is loaded at first use is no part of it
    found = [peak_bytes(model, inputs, engine)]


def allocate(*_):
    torch.ones(2**26)


hook = model.register_forward_hook(allocate)
found.append(peak_bytes(model, inputs))
hook.remove()
found.append(peak_bytes(model, inputs))
print(json.dumps([*found, len(model._forward_hooks)]))
"""


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="reads Linux's resident set")
def test_peak_bytes_sees_what_is_gone_afterwards() -> None:
    """In a process of its own, where nothing that was freed before is still resident."""
    script = PEAKS.replace("PATH", repr([str(Path(tiny.__file__).parent)]))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    plain, with_block, after, hooked = json.loads(done.stdout.splitlines()[-1])
    block = 2**28
    assert 0.9 * block < with_block - plain < 1.2 * block
    assert after < plain + block / 2  # the earlier peak is forgotten
    assert hooked == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scorer", ["headrouter", "dart"])
def test_synchronisations(model: Any, inputs: dict[str, Any], scorer: str) -> None:
    on_gpu = tiny.build(FAMILY).cuda()
    given = {name: value.cuda() for name, value in inputs.items()}
    for hooked in (None, engine(on_gpu, 0.5, scorer)):
        run_once(on_gpu, given, hooked, tokens=2)
    alone, pruned = count_syncs(on_gpu, given), count_syncs(on_gpu, given, engine(on_gpu, 0.5, scorer))
    assert pruned[0] - alone[0] <= 1
    assert pruned[1] == alone[1]


def test_new_prompts_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cost = {"loads the router": 50.0, "a": 1.0, "b": 3.0, "c": 2.0}

    def classify(prompt: str) -> None:
        clock[0] += cost[prompt]

    assert time_routing(classify, list(cost)) == 2.0


def test_linear_fit() -> None:
    assert linear_fit([30, 60, 120], [0.004, 0.007, 0.013]) == {
        "seconds_per_second": 0.0001, "offset_s": 0.001, "r2": 1.0
    }  # fmt: skip
    bent = linear_fit([1, 2, 3, 4], [1, 4, 9, 16])
    assert bent["r2"] == pytest.approx(0.969, abs=1e-3)
    assert linear_fit([1, 2, 3], [5, 5, 5])["r2"] == 1.0
