"""Nothing that is asked about is heard in two splits."""

from __future__ import annotations

from collections import Counter

import pytest

from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.splits import CODE_VOICES, SPLITS, VOICES, held_out, split_of
from headrouter_pl.data.sealed import is_sealed

OPEN = next(name for i in range(99) if not is_sealed(name := f"usr/share/open/{i}"))
SEALED = next(name for i in range(99) if is_sealed(name := f"usr/share/sealed/{i}"))
CONTENT = {split: next(name for i in range(999) if held_out(name := f"content {i}") == split) for split in SPLITS}


def clip(key: str = OPEN, **labels: str) -> Clip:
    return Clip(key, "package", "speech", **labels)


def test_shares_and_that_names_alone_decide() -> None:
    found = Counter(held_out(f"name {i}") for i in range(4000))
    assert found["test"] / 4000 == pytest.approx(0.15, abs=0.02)
    assert found["validation"] / 4000 == pytest.approx(0.07, abs=0.015)
    assert held_out("") == "train"


@pytest.mark.parametrize("split", SPLITS)
def test_content_decides(split: str) -> None:
    assert split_of(clip(content=CONTENT[split], voice="anybody")) == split


@pytest.mark.parametrize(("voice", "split"), VOICES.items())
def test_an_unseen_voice_is_in_its_split_whatever_it_says(voice: str, split: str) -> None:
    assert split_of(clip(content=CONTENT["train"], voice=voice)) == split
    assert split_of(clip(content=CONTENT["test"], voice=voice)) == "test"
    assert split_of(clip(code="7", voice=voice)) == split


@pytest.mark.parametrize(("voice", "split"), CODE_VOICES.items())
def test_voices_held_out_for_code_words_alone(voice: str, split: str) -> None:
    assert split_of(clip(code="bravo", voice=voice)) == split
    assert split_of(clip(content=CONTENT["train"], voice=voice)) == "train"


def test_objects_are_held_out_in_one_language_at_a_time() -> None:
    languages = [f"language {i}" for i in range(60)]
    found = {split_of(clip(content="horse", item="horse", language=language)) for language in languages}
    assert found == set(SPLITS)


def test_synthetic_speech_is_for_training_and_sealed_clips_for_nothing() -> None:
    assert split_of(clip(content=CONTENT["test"], voice="synthetic/espeak")) == "train"
    assert split_of(clip(SEALED, content=CONTENT["train"])) == "sealed"
    assert split_of(clip(SEALED, voice="synthetic/espeak")) == "sealed"


def test_no_content_is_in_two_splits(tones_library: ClipLibrary) -> None:
    where: dict[str, set[str]] = {}
    for one, split in zip(tones_library.clips, tones_library.splits, strict=True):
        where.setdefault(f"{one.content}:{one.language}" if one.content else one.key, set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())
    assert set(tones_library.splits) == set(SPLITS)
