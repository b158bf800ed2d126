"""The pooled sequence: slots, means, masks and spreading, against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrouter_pl.pruning.layout import TokenLayout
from headrouter_pl.pruning.pooling import Pooling

torch.set_num_threads(1)


@st.composite
def batches(draw: st.DrawFn) -> list[str]:
    """Kinds of the positions of each sample: ``a`` audio, ``t`` text, ``p`` padding. There is some audio."""
    width, side = draw(st.integers(2, 20)), draw(st.sampled_from(["left", "right"]))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        padding = draw(st.integers(0, width - 2))
        row = draw(st.text("at", min_size=width - padding, max_size=width - padding))
        rows.append("p" * padding + row if side == "left" else row + "p" * padding)
    assume(any("a" in row for row in rows))
    return rows


def layout_of(rows: list[str], prompt_length: int | None = None) -> TokenLayout:
    audio = torch.tensor([[kind == "a" for kind in row] for row in rows])
    valid = torch.tensor([[kind != "p" for kind in row] for row in rows])
    return TokenLayout.build(audio, attention_mask=valid, prompt_length=prompt_length)


def slots_of(row: str, pool: int, last: int) -> list[list[int]]:
    """Positions of each slot, up to ``last``."""
    slots: list[list[int]] = []
    for position, kind in enumerate(row[: last + 1]):
        if kind == "a" and position and row[position - 1] == "a" and len(slots[-1]) < pool:
            slots[-1].append(position)
        elif kind != "p":
            slots.append([position])
    return slots if "a" in row else []


@settings(max_examples=300, deadline=None)
@given(batches(), st.integers(1, 6), st.none() | st.integers(1, 20))
def test_equals_a_loop(rows: list[str], pool: int, prompt_length: int | None) -> None:
    layout = layout_of(rows, prompt_length)
    pooling = Pooling.build(layout, pool)
    states = torch.randn(len(rows), len(rows[0]), 3)
    means = pooling.average(states, pool)
    for b, row in enumerate(rows):
        asked = layout.query_index[b][layout.query_valid[b]].tolist()
        slots = slots_of(row, pool, max([*asked, row.rfind("a")]))
        count = len(slots)
        assert pooling.layout.valid[b].tolist() == [i < count for i in range(pooling.layout.shape[1])]
        assert pooling.size[b].tolist()[:count] == [len(slot) for slot in slots]
        assert not pooling.size[b, count:].any()
        assert pooling.middle[b].tolist()[:count] == [slot[(len(slot) - 1) // 2] for slot in slots]
        for i, slot in enumerate(slots):
            torch.testing.assert_close(means[b, i], states[b, slot].mean(0))
        groups = [i for i, slot in enumerate(slots) if row[slot[0]] == "a"]
        assert pooling.layout.audio_index[b][pooling.layout.audio_valid[b]].tolist() == groups
        of_token = [g for g, i in enumerate(groups) for _ in slots[i]]
        assert pooling.group[b].tolist()[: len(of_token)] == of_token
        if count:
            asked_slots = [next(i for i, slot in enumerate(slots) if position in slot) for position in asked]
            assert pooling.layout.query_index[b][layout.query_valid[b]].tolist() == asked_slots
        attention = torch.rand(len(rows), 2, pooling.layout.audio_index.shape[1])
        attention = attention.masked_fill(~pooling.layout.audio_valid[:, None], 0.0)
        spread = pooling.spread(attention)[b]
        if groups:
            raw = attention[b][:, of_token]
            wanted = raw * (attention[b].sum(1) / raw.sum(1))[:, None]
            torch.testing.assert_close(spread[:, : len(of_token)], wanted)
        assert not spread[:, len(of_token) :].any()


def visible(rows: list[str], past: int, window: int, columns: int) -> Tensor:
    """Bool mask ``[B, 1, L, C]`` as a model makes it, one pair of positions at a time."""
    length = len(rows[0])
    mask = torch.zeros(len(rows), 1, length, columns, dtype=torch.bool)
    first = max(past + length - columns, 0)  # the position that the first column stands for
    for b, row in enumerate(rows):
        for i in range(length):
            for column in range(columns):
                j = first + column
                key = "t" if j < past else row[j - past] if j < past + length else "p"
                mask[b, 0, i, column] = j <= past + i and past + i - j < window and key != "p"
    return mask


@settings(max_examples=150, deadline=None)
@given(
    batches(),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(2, 30),
    st.sampled_from(["dynamic", "static", "cropped"]),
    st.booleans(),
)
def test_a_slot_sees_what_its_middle_token_sees(
    rows: list[str], pool: int, past: int, window: int, cache: str, additive: bool
) -> None:
    pooling = Pooling.build(layout_of(rows), pool)
    length = len(rows[0])
    columns = {"dynamic": past + length, "static": past + length + 5, "cropped": min(past, 1) + length}[cache]
    mask = visible(rows, past, window, columns)
    given_ = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min) if additive else mask
    made = pooling.mask(given_, past)
    assert made is not None
    made = made == 0 if additive else made
    for b, row in enumerate(rows):
        count = int(pooling.layout.valid[b].sum())
        middles = pooling.middle[b].tolist()
        for i in range(pooling.layout.shape[1]):
            if i >= count:
                assert made[b, 0, i, i]  # padding sees itself, for the softmax to have something
                continue
            seen = [
                j < count and middles[j] <= middles[i] and middles[i] - middles[j] < window and row[middles[j]] != "p"
                for j in range(pooling.layout.shape[1])
            ]
            assert made[b, 0, i].tolist() == seen


@pytest.mark.parametrize("mask", [None, torch.ones(1, 6, dtype=torch.bool)])
def test_causal_masks_stay_implied(mask: Tensor | None) -> None:
    assert Pooling.build(layout_of(["taaaat"]), 2).mask(mask, 0) is None


def test_means_are_taken_in_float32() -> None:
    states = torch.tensor([[[256.0], [1.0], [1.0], [1.0]]], dtype=torch.bfloat16)
    pooled = Pooling.build(layout_of(["aaaa"]), 4).average(states, 4)
    assert pooled.dtype == torch.bfloat16
    assert pooled.item() == torch.tensor(64.75, dtype=torch.bfloat16).item()
