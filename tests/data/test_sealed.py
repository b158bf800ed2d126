"""The rule that keeps recordings sealed."""

from __future__ import annotations

import hashlib

from headrouter_pl.data.sealed import is_sealed
from headrouter_pl.data.speech import SPEECH_CLIPS


def test_the_first_hex_digit_decides() -> None:
    keys = [f"folder/clip_{i}.wav" for i in range(2000)]
    for key in keys:
        assert is_sealed(key) == (hashlib.sha256(key.encode()).hexdigest()[0] in {"0", "1"})
    assert 0.09 < sum(map(is_sealed, keys)) / len(keys) < 0.16


def test_keys_are_utf8() -> None:
    assert is_sealed("é") == (hashlib.sha256(b"\xc3\xa9").hexdigest()[0] in "01")


def test_known_names() -> None:
    assert not is_sealed("moonshine_voice/assets/two_cities.wav")
    assert is_sealed("moonshine_voice/assets/clone-test.wav")
    assert not any(is_sealed(key) for key in SPEECH_CLIPS)
