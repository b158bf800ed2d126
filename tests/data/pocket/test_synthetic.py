"""Synthetic speech: labels and determinism on a small tree of texts."""

import random
import shutil
import sys
from collections import Counter

import numpy as np
import pytest

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.pocket.sources import synthetic
from headrouter_pl.data.pocket.splits import held_out

FORTUNE = """The quick bear sleeps, and nobody "knows why".  It has 3 legs; NASA told us so!
		-- Somebody, famous person
%
It's raining again.  Damn the rain.  A zzyzx word here.
"""
WORDS = "the quick sleeps bear and nobody knows why it's raining again damn rain a us told so word here"


@pytest.fixture
def root(tmp_path):
    fortunes = tmp_path / synthetic.FORTUNES
    fortunes.mkdir(parents=True)
    for name in synthetic.TEXTS:
        (fortunes / name).write_text(FORTUNE if name == "wisdom" else "%\n")
    words = tmp_path / synthetic.WORDS
    words.parent.mkdir(parents=True)
    words.write_text(WORDS.replace(" ", "\n"))
    return tmp_path


def test_clauses_are_clean():
    vocabulary = frozenset(WORDS.split())
    assert list(synthetic.clauses(FORTUNE, vocabulary)) == [
        "the quick bear sleeps", "and nobody", "knows why", "it's raining again", "damn the rain",
    ]  # fmt: skip


def test_index_is_sorted_unique_deterministic_and_train_only(root):
    clips = list(synthetic.index(root))
    assert clips == list(synthetic.index(root))
    keys = [clip.key for clip in clips]
    assert keys == sorted(set(keys))
    items = {clip.content for clip in clips if clip.item}
    assert len(items) > 100
    # Real names are split by object and language, so that an English one of another split is never heard in training.
    assert {held_out(f"{content}:English") for content in items} == {"train"}
    assert {clip.content for clip in clips} - items == {""}
    assert all(clip.voice.startswith("synthetic/") and "!" in clip.key for clip in clips)
    assert not any("damn" in clip.text for clip in clips)


def test_sentences_never_name_a_withheld_object(root):
    withheld = sorted(word for word in synthetic.withheld() if word.isalpha())
    (root / synthetic.WORDS).write_text("\n".join(["aaa", "bbb", "ccc", *withheld]))
    assert withheld
    assert {held_out(f"item:{word}:English") for word in withheld} >= {"validation", "test"}
    assert all(not synthetic.withheld().intersection(text.split()) for text in synthetic.sentences(root))


def test_code_words_by_all_voices():
    clips = list(synthetic.code_clips())
    english = Counter(clip.voice for clip in clips if clip.language == "English")
    assert set(english.values()) == {28 + 26 + 26}
    assert len(english) == len(synthetic.ENGLISH)
    seven = {clip.language: clip for clip in clips if clip.code == "7"}
    assert len(seven) == 11
    assert (seven["Czech"].text, seven["Czech"].english, seven["Czech"].content) == ("sedm", "seven", "")
    assert "qi1" in synthetic.command(seven["Mandarin"], "x.wav")


def test_items_have_category_and_content():
    clips = list(synthetic.item_clips())
    assert all(clip.category and clip.content == f"item:{clip.item}" and not clip.code for clip in clips)
    assert set(Counter(clip.text for clip in clips).values()) == {3}


def test_missing_texts_name_the_package(tmp_path):
    with pytest.raises(AudioError, match="wamerican"):
        list(synthetic.index(tmp_path))


def test_a_failing_engine_is_an_audio_error(monkeypatch, tmp_path):
    clip = next(synthetic.code_clips())
    monkeypatch.setattr(synthetic, "command", lambda clip, path: [sys.executable, "-c", "raise SystemExit('broken')"])
    with pytest.raises(AudioError, match="broken"):
        synthetic.read(tmp_path, clip)
    monkeypatch.setattr(synthetic, "command", lambda clip, path: ["no-such-engine"])
    with pytest.raises(AudioError, match="flite"):
        synthetic.read(tmp_path, clip)


@pytest.mark.parametrize("engine", ["flite", "espeak-ng"])
def test_engine_speaks_the_same_twice(engine, tmp_path):
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed")
    clip = next(clip for clip in synthetic.code_clips() if clip.package == engine)
    first = synthetic.read(tmp_path, clip)
    assert first.dtype == np.float32
    assert 0.2 < len(first) / 16_000 < 3
    np.testing.assert_array_equal(first, synthetic.read(tmp_path, clip))


def test_voices_sound_different(tmp_path, monkeypatch):
    if shutil.which("flite") is None or shutil.which("espeak-ng") is None:
        pytest.skip("flite or espeak-ng is not installed")
    monkeypatch.setattr(synthetic, "draw", lambda key: random.Random(0))  # the same speed for all
    for language in ("English", *synthetic.OTHERS.values()):
        voices = [voice for voice in (*synthetic.ENGLISH, *synthetic.FOREIGN) if voice.language == language]
        text = "七" if language == "Mandarin" else "a"
        clips = [synthetic.make(voice, text, english="") for voice in voices]
        assert len(clips) >= 2
        spoken = {synthetic.read(tmp_path, clip).tobytes() for clip in clips}
        assert len(spoken) == len(clips)
