"""Where the tokens of a batch are, against plain loops."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrouter_pl.errors import AudioMaskError
from headrouter_pl.pruning.engine import _unpadded
from headrouter_pl.pruning.layout import TokenLayout, find_audio

torch.set_num_threads(1)

IGNORE = -100


@dataclass
class Batch:
    """Kinds ``[B][L]`` of the positions: ``a`` audio, ``t`` text, ``p`` padding; answers; a prompt length."""

    kinds: list[str]
    answers: list[list[bool]] | None
    prompt_length: int | None
    masked: bool

    def layout(self) -> TokenLayout:
        audio = torch.tensor([[kind == "a" for kind in row] for row in self.kinds])
        attention = torch.tensor([[int(kind != "p") for kind in row] for row in self.kinds]) if self.masked else None
        labels = None if self.answers is None else torch.where(torch.tensor(self.answers), 7, IGNORE)
        return TokenLayout.build(audio, attention_mask=attention, labels=labels, prompt_length=self.prompt_length)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    width = draw(st.integers(1, 10))
    side = draw(st.sampled_from(["none", "left", "right"]))
    kinds = []
    for _ in range(draw(st.integers(1, 3))):
        padding = 0 if side == "none" else draw(st.integers(0, width - 1))
        row = draw(st.text("at", min_size=width - padding, max_size=width - padding))
        kinds.append("p" * padding + row if side == "left" else row + "p" * padding)
    answers = None
    if draw(st.booleans()):
        answers = [draw(st.lists(st.booleans(), min_size=width, max_size=width)) for _ in kinds]
    prompt_length = draw(st.none() | st.integers(-2, width + 2))
    return Batch(kinds, answers, prompt_length, masked=side != "none" or draw(st.booleans()))


@settings(max_examples=500, deadline=None)
@given(batches())
def test_equals_a_loop(batch: Batch) -> None:
    layout = batch.layout()
    width = len(batch.kinds[0])
    assert layout.shape == (len(batch.kinds), width)
    for b, kinds in enumerate(batch.kinds):
        audio = [i for i in range(width) if kinds[i] == "a"]
        tokens = [i for i in range(width) if kinds[i] != "p"]
        prompt = [
            i
            for i in tokens
            if not (batch.answers is not None and batch.answers[b][i])
            and (batch.prompt_length is None or i < batch.prompt_length)
        ]
        queries = [i for i in prompt if not audio or i > audio[-1]]
        if not queries:
            queries = [(prompt or tokens)[-1]]
        assert layout.audio_index[b][layout.audio_valid[b]].tolist() == audio
        assert layout.seen[b].item() == len(audio)
        assert layout.audio_mask[b].nonzero().flatten().tolist() == audio
        assert layout.valid[b].nonzero().flatten().tolist() == tokens
        assert layout.query_index[b][layout.query_valid[b]].tolist() == queries
        assert layout.prompt_mask[b].nonzero().flatten().tolist() == [i for i in prompt if i not in audio]
    # Padded on the right, no wider than needed, and with positions of the sample in the padding.
    assert layout.audio_index.shape == layout.audio_valid.shape
    assert layout.audio_index.shape[1] == max(row.count("a") for row in batch.kinds)
    assert (layout.audio_valid.int().diff(dim=1) <= 0).all()
    assert (layout.query_valid.int().diff(dim=1) <= 0).all()
    assert ((layout.query_index >= 0) & (layout.query_index < width)).all()


def queries_of(layout: TokenLayout) -> list[list[int]]:
    return [row[valid].tolist() for row, valid in zip(layout.query_index, layout.query_valid, strict=True)]


def test_queries_follow_the_last_clip() -> None:
    assert queries_of(Batch(["taattattt"], None, None, masked=False).layout()) == [[6, 7, 8]]


@pytest.mark.parametrize("kinds", ["pptaa", "ttaap"])
def test_without_text_after_the_audio_the_last_prompt_token_asks(kinds: str) -> None:
    layout = Batch([kinds, "taatt"], None, None, masked=True).layout()
    assert queries_of(layout) == [[kinds.rindex("a")], [3, 4]]


def test_answers_and_drafts_do_not_ask() -> None:
    answers = [[False] * 4 + [True, True], [False] * 2 + [True] * 4]
    assert queries_of(Batch(["taattt", "ptaatt"], answers, None, masked=True).layout()) == [[3], [1]]
    assert queries_of(Batch(["taattt", "ptaatt"], None, 5, masked=True).layout()) == [[3, 4], [4]]
    assert queries_of(Batch(["taattt"], [[True] * 6], None, masked=False).layout()) == [[5]]


def test_another_ignore_index() -> None:
    layout = TokenLayout.build(
        torch.tensor([[True, False, False]]), labels=torch.tensor([[-1, -1, 4]]), ignore_index=-1
    )
    assert queries_of(layout) == [[1]]


def test_audio_in_the_padding_is_none() -> None:
    """Some collators pad with whatever id is at hand."""
    layout = TokenLayout.build(torch.tensor([[True, True, False]]), attention_mask=torch.tensor([[0.0, 1.0, 1.0]]))
    assert layout.audio_index.tolist() == [[1]]


# Finding the audio


def test_placeholders_are_audio() -> None:
    ids = torch.tensor([[1, 9, 9, 2]])
    assert find_audio(ids, 9, None, "Model").tolist() == [[False, True, True, False]]
    assert not find_audio(ids, 8, None, "Model").any()


def test_a_given_mask_goes_first_where_it_fits() -> None:
    ids = torch.tensor([[1, 9, 9, 2]])
    given_ = torch.tensor([[1, 0, 0, 0]])
    assert find_audio(ids, 9, given_, "Model").tolist() == [[True, False, False, False]]
    assert find_audio(None, 9, given_, "Model").dtype == torch.bool
    # Made for the prompt; a forward of another length shows its placeholders.
    assert find_audio(ids[:, :2], 9, given_, "Model").tolist() == [[False, True]]


def test_audio_that_cannot_be_found() -> None:
    with pytest.raises(AudioMaskError, match=r"TheModel got inputs_embeds without input_ids.*audio_mask=mask"):
        find_audio(None, 9, None, "TheModel")
    with pytest.raises(AudioMaskError, match=r"config of TheModel names no audio placeholder id.*audio_mask=mask"):
        find_audio(torch.tensor([[1]]), None, None, "TheModel")


class TestPadding:
    """What the engine reads out of the masks that models are given."""

    MASK = torch.tensor([[False, True, True, True, True], [True, True, True, True, True]])

    @staticmethod
    def square(mask: torch.Tensor, columns: int) -> torch.Tensor:
        """Causal, for the last three of five positions, of which the last so many are columns."""
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        return (causal & mask[:, None, None, :] & mask[:, None, :, None])[:, :, 2:, 5 - columns :]

    @pytest.mark.parametrize("order", [("full", "sliding"), ("sliding", "full")])
    def test_of_each_kind_of_layer_the_widest(self, order: tuple[str, str]) -> None:
        padded = self.MASK.clone()
        padded[0, 3] = False
        masks = {"full": self.square(padded, 5), "sliding": self.square(padded, 4)}
        found = _unpadded({kind: masks[kind] for kind in order}, 3, 2)
        assert found is not None
        assert found.tolist() == padded[:, 2:].tolist()
        additive = torch.zeros(2, 1, 3, 5).masked_fill(~masks["full"], -torch.inf)
        assert torch.equal(_unpadded({"full": additive, "other": None}, 3, 2), found)  # type: ignore[arg-type]

    def test_a_windows_columns_end_with_the_last_token(self) -> None:
        padded = self.MASK.clone()
        padded[1, 2] = False
        found = _unpadded({"sliding": self.square(padded, 4)}, 3, 2)
        assert found is not None
        assert found.tolist() == padded[:, 2:].tolist()
        assert _unpadded({"sliding": self.square(padded, 2)}, 3, 2) is None  # columns of two of three tokens
        assert _unpadded({}, 3, 2) is None
