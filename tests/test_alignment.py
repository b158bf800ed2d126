"""The projector learns to speak the decoder's vocabulary."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from headrouter_pl import HeadRouterError
from headrouter_pl.alignment import Utterance, align_projector
from headrouter_pl.callbacks import AlignProjector

WORDS = ["one", "two", "three", "four", "man", "woman"]
WIDTH, HIDDEN = 24, 16


class Tokenizer:
    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert text.startswith(" ")
        assert not add_special_tokens
        return {"input_ids": [WORDS.index(word) for word in text.split()]}


def make_projector() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))


@pytest.fixture
def embeddings() -> torch.Tensor:
    return torch.randn(len(WORDS), HIDDEN, generator=torch.Generator().manual_seed(1)) * 0.1


def make_utterances(count: int, seed: int = 0) -> list[Utterance]:
    """Each word has a direction of its own in the features, and so has each speaker."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((len(WORDS), WIDTH)) * 2
    found = []
    for _ in range(count):
        words, speaker = rng.choice(4, 3), int(rng.integers(4, 6))
        frames = np.repeat(directions[words], 3, axis=0) + directions[speaker]
        frames = frames + rng.standard_normal(frames.shape) * 0.3
        text = " ".join(WORDS[i] for i in words)
        found.append(Utterance(frames.astype(np.float16), text, {"gender": WORDS[speaker]}))
    return found


def test_learns_what_is_said_and_who_says_it(embeddings: torch.Tensor) -> None:
    before = embeddings.clone()
    first = align_projector(
        make_projector(), embeddings, Tokenizer(), make_utterances(200), steps=2, batch_size=32, progress=False
    )
    projector = make_projector()
    last = align_projector(
        projector, embeddings, Tokenizer(), make_utterances(200), steps=200, batch_size=32, progress=False
    )
    assert last["ctc"] < first["ctc"] / 3
    assert last["gender"] > 0.9
    assert torch.equal(embeddings, before)
    new = make_utterances(50, seed=1)
    with torch.no_grad():
        means = torch.stack([projector(torch.from_numpy(u.features.astype(np.float32))).mean(0) for u in new])
    nearer = means @ (embeddings[5] - embeddings[4]) > 0
    right = torch.tensor([u.labels["gender"] == "woman" for u in new])
    assert (nearer == right).float().mean() > 0.9


def test_outputs_are_as_large_as_embeddings(embeddings: torch.Tensor) -> None:
    projector, utterances = make_projector(), make_utterances(100)
    align_projector(projector, embeddings, Tokenizer(), utterances, steps=20, progress=False)
    with torch.no_grad():
        outputs = projector(torch.from_numpy(np.concatenate([u.features for u in utterances]).astype(np.float32)))
    assert outputs.std().item() == pytest.approx(embeddings.std().item(), rel=1e-3)


def test_same_seed_same_projector(embeddings: torch.Tensor) -> None:
    weights = []
    for _ in range(2):
        projector = make_projector()
        align_projector(projector, embeddings, Tokenizer(), make_utterances(40), steps=5, progress=False)
        weights.append(torch.cat([value.flatten() for value in projector.state_dict().values()]))
    assert torch.equal(*weights)


def test_texts_that_do_not_fit_their_frames_are_left_out(embeddings: torch.Tensor) -> None:
    """CTC cannot place more tokens than there are frames; its loss would be infinite."""
    short = Utterance(make_utterances(1)[0].features[:2], "one two three", {"gender": "man"})
    figures = align_projector(
        make_projector(),
        embeddings,
        Tokenizer(),
        [short, *make_utterances(10)],
        steps=5,
        batch_size=11,
        progress=False,
    )
    assert np.isfinite(figures["ctc"])


def test_callback_needs_recordings_and_leaves_a_resumed_run_alone() -> None:
    callback = AlignProjector(steps=1)
    module = SimpleNamespace(named_modules=lambda: iter([("m.multi_modal_projector", make_projector())]))
    resumed = SimpleNamespace(global_step=3)
    callback.on_train_start(resumed, module)  # does not even ask for the data module
    begun = SimpleNamespace(named_modules=module.named_modules, projector_trained=True)
    callback.on_train_start(SimpleNamespace(global_step=0), begun)  # nor for one that begins with trained weights
    fresh = SimpleNamespace(global_step=0, datamodule=L.LightningDataModule(), is_global_zero=True)
    with pytest.raises(HeadRouterError, match="utterances"):
        callback.on_train_start(fresh, module)
