"""What is read out of answers as models give them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrouter_pl.tasks import (
    TASKS,
    read_answer,
    read_choice,
    read_option,
    read_spoken,
    read_text,
    read_transcript,
    right_choice,
)

OPTIONS = ("dog barking", "cat", "a train", "rain")
CHOICES = [
    # The letter
    ("B", "B"), ("b", "B"), (" B\n", "B"), ("B.", "B"), ("b.", "B"), ("(B)", "B"), ("(b)", "B"), ("[B]", "B"),
    ("B)", "B"),
    ("b)", "B"), ("'b'", "B"), ('"B"', "B"), ("**B**", "B"), ("<answer>B</answer>", "B"), ("`B`", "B"), ("A", "A"),
    ("a", "A"),
    # The letter and the option
    ("B) cat", "B"), ("(b) cat", "B"), ("B. cat", "B"), ("B: cat", "B"), ("B - cat", "B"), ("B, cat", "B"),
    ("B cat", "B"),
    ("A. dog barking", "A"), ("A) dog barking.", "A"), ("B\nBecause of the meowing.", "B"), ("C: a train", "C"),
    # In a sentence
    ("The answer is B.", "B"), ("the answer is b", "B"), ("The answer is (B), a cat.", "B"), ("Answer: B", "B"),
    ("answer: b", "B"), ("The correct option is D because A is quiet.", "D"), ("Option A is right", "A"),
    ("option b", "B"),
    ("I think it's B", "B"), ("I would choose B, not C.", "B"), ("so it's b.", "B"), ("It sounds like A", "A"),
    ("My choice: (C)", "C"), ("The answer is A because of the barking", "A"), ("The answer would be D.", "D"),
    # Chatter
    ("Sure! I listened carefully. B", "B"), ("Of the options A, B, C and D, the answer is C.", "C"),
    ("B. Because A is wrong.", "B"), ("Hardly A dog, so B", "B"), ("It is not A but B.", "B"),
    ("Neither A nor C, so B", "B"),
    ("As an AI I hear: B", "B"), ("I'd say it is most likely option (D), I am quite sure of it!", "D"),
    # The option's text
    ("cat", "B"), ("Cat.", "B"), ("A cat", "B"), ("a train", "C"), ("A train.", "C"), ("I hear a cat meowing", "B"),
    ("The answer is a cat.", "B"), ("A cat can be heard", "B"), ("Dog barking", "A"),
    ("It is the sound of rain!", "D"),
    ("It is not a cat, it is rain.", "D"), ("A dog barking in the distance", "A"),
    # Other scripts
    ("答案是B。", "B"), ("选B", "B"), ("（Ｂ）", "B"), ("Ⓑ", "B"), ("答えはBです", "B"), ("Ответ: B", "B"),
    ("Die Antwort ist B.", "B"),
    ("La réponse est B", "B"), ("La respuesta es la B.", "B"), ("정답은 B입니다", "B"), ("الجواب هو B", "B"),
    ("उत्तर B है", "B"),
    # Nothing, or a refusal
    ("", None), ("   \n", None), ("...", None), ("I cannot tell.", None),
    ("I'm sorry, but I cannot hear the audio.", None),
    ("As an AI, I can't listen to audio.", None), ("I don't know", None), ("None of the above", None),
    ("unknown", None),
    ("It is a", None), ("A dog", None), ("Not B", None), ("E", None), ("Z", None), ("7", None), ("В", None),
    ("我不知道", None),
    # Several
    ("A or B", None), ("A and B", None), ("A, B", None), ("A/B", None), ("Both B and C", None),
    ("Either C or D.", None),
    ("The answer is B or C", None), ("The answer is A, B", None), ("A) dog barking B) cat C) a train D) rain", None),
    ("A. dog barking\nB. cat", None), ("cat and rain", None), ("dog barking, a train", None), ("B? C?", None),
    ("The answer is B. No, the answer is C.", None), ("(a) or (b)", None), ("ABCD", None),
    # No letters, though they look like some
    ("A. dog barking\nB", None), ("It may be A or C, hard to say.\n\nB", "B"), ("A:\n\nA", "A"),
    ("C#", None), ("C major", None), ("D'accord", None), ("e.g. rain", "D"), ("vitamin C-like", None),
    ("A-level", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "want"), CHOICES)
def test_read_choice(text: str, want: str | None) -> None:
    assert read_choice(text, OPTIONS) == want


def test_a_letter_counts_more_than_the_text_behind_it() -> None:
    assert read_choice("B) rain", OPTIONS) == "B"


@pytest.mark.parametrize(
    ("text", "options", "want"),
    [
        ("female", ("male", "female"), "B"),
        ("a male", ("male", "female"), "A"),
        ("It is a woman's voice, so female.", ("male", "female"), "B"),
        ("male or female", ("male", "female"), None),
        ("Adult (31-45)", ("Adult (31-45)", "Young Adult (18-30)"), "A"),
        ("a young adult (18-30)", ("Adult (31-45)", "Young Adult (18-30)"), "B"),
        ("young adult", ("Adult", "Young Adult"), "B"),
        ("about 30 years", ("18-30", "30", "31-45"), "B"),
        ("18-30 years", ("18-30", "30", "31-45"), "A"),
        ("C major", ("G major", "C major"), "B"),
        ("It is in C major.", ("G major", "C major"), "B"),
        ("A. C major", ("C major", "G major"), "A"),
        ("The chord is F minor", ("F major", "F minor", "F"), "B"),
        ("我听到狗叫的声音", ("猫叫", "狗叫"), "B"),
        ("кошка", ("собака", "кошка"), "B"),
        ("café", ("cafe", "café"), "B"),
        ("J", tuple("0123456789"), "J"),
        ("I think so", tuple(f"word {i}" for i in range(10)), None),
        ("I. word 8", tuple(f"word {i}" for i in range(10)), "I"),
        ("four", ("one", "two", "three", "four"), "D"),
        ("twenty-four", ("four", "twenty-four"), "B"),
        ("Park", ("Park - Outdoor", "Tram"), None),
        ("Park - Outdoor", ("Park - Outdoor", "Tram"), "A"),
        ("In a park", ("In a park.", "At school."), "A"),
        ("B", ("B", "A"), "B"),  # a letter is a letter, whatever the options are
        ("cat", ("cat", "Cat"), None),
        # A letter that is part of an option's text names no other.
        ("She needs vitamin C in the morning.", ("Vitamin C", "Vitamin D", "Iron", "Zinc"), "A"),
        ("Not vitamin C but iron.", ("Vitamin C", "Vitamin D", "Iron"), "C"),
        ("B. Vitamin A", ("Vitamin C", "Vitamin A"), "B"),
        ("The answer is D, vitamin C.", ("A", "B", "Iron", "Vitamin C"), "D"),
        ("He chose plan B.", ("Plan B", "Plan A", "No plan"), "A"),
        ("A plan B is mentioned", ("Plan A", "Plan C", "Plan B"), "C"),
        ("They live in Washington D.C. and work there.", ("Washington D.C.", "New York", "Paris", "London"), "A"),
        ("He says the capital is Washington D.C.", ("Paris", "Washington D.C.", "New York", "London"), "B"),
        ("A dog barks", ("cat meows", "dog barks"), "B"),
    ],
)
def test_options_of_many_kinds(text: str, options: tuple[str, ...], want: str | None) -> None:
    assert read_choice(text, options) == want


REAL = [
    ("a", "A"), ("b", "B"), ("A", "A"), ("'a'", "A"), ("(b)", "B"), ("b.", "B"), ("a)", "A"), ("Answer: b", "B"),
    ("real", "A"),
    ("Real.", "A"), ("Fake", "B"), ("It is fake.", "B"), ("The audio is completely authentic", "A"),
    ("authentic", "A"),
    ("genuine", "A"), ("synthetic", "B"), ("It contains synthesized speech.", "B"), ("a. real", "A"),
    ("b) fake", "B"),
    ("It's artificial", "B"), ("The answer is 'a'", "A"), ("I believe this is real speech.", "A"),
    ("not real, but fake", "B"),
    ("It is not fake", None), ("real or fake", None), ("a or b", None), ("", None), ("I can't tell", None),
    ("c", None),
    ("unreal", None), ("It is a", None), ("真", None), ("答案是 a", "A"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "want"), REAL)
def test_real_or_fake(text: str, want: str | None) -> None:
    assert TASKS["audiomarathon-sd"].parse(text, ("real", "fake")) == want


GENDER = [
    ("a", "A"), ("b", "B"), ("B", "B"), ("'b'", "B"), ("(a)", "A"), ("b.", "B"), ("male", "A"), ("Female", "B"),
    ("FEMALE.", "B"),
    ("a male", "A"), ("It is a male voice.", "A"), ("a female voice", "B"), ("The speaker is a woman", "B"),
    ("a man", "A"),
    ("a) male", "A"), ("b: female", "B"), ("The answer is b", "B"), ("Answer: a", "A"), ("She sounds feminine", "B"),
    ("Masculine", "A"), ("I think the speaker is female.", "B"), ("not female, male", "A"), ("woman, so b.", "B"),
    ("male and female", None), ("a or b", None), ("", None), ("unknown", None), ("I am sorry, I cannot.", None),
    ("c", None),
    ("a man and a woman", None), ("人", None), ("答案：b", "B"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "want"), GENDER)
def test_gender(text: str, want: str | None) -> None:
    assert TASKS["audiomarathon-sgr"].parse(text, ("male", "female")) == want


@pytest.mark.parametrize(("text", "want"), CHOICES)
def test_read_option_gives_the_text(text: str, want: str | None) -> None:
    assert read_option(text, OPTIONS) == (None if want is None else OPTIONS["ABCD".index(want)])


SPOKEN = [
    ("It was the best of times.", "it was the best of times"), ("IT WAS", "it was"),
    ("it was\nthe best", "it was the best"),
    ("Spoken Content: it was", "it was"), ("Sure! The transcription: It was.", "it was"),
    ("Transcript: It was.", "it was"),
    ("Transcription:\nIt was", "it was"), ("**Transcript:** It was", "it was"),
    ("The speaker says: 'It was'", "it was"),
    ("The original content of this audio is: 'It was.'", "it was"),
    ("Here is the transcript of the audio: It was", "it was"),
    ("The audio says: it was", "it was"), ("content: it was", "it was"), ("He said: it was", "he said it was"),
    ("it was: the best", "it was the best"), ("Don't -- stop!", "don't stop"), ("12,5 km", "12 5 km"), ("", None),
    ("  ", None),
    ("...", None), ("Transcript:", None), ("“It was”", "it was"), ("Mr. Smith", "mr smith"), ("你好。", "你好"),
    ("Ça va?", "ça va"),
    ("Straße", "strasse"), ("привет, мир", "привет мир"), ("I'm sorry, I can't.", "i'm sorry i can't"),
    ("um it was", "um it was"),
    ("a b c", "a b c"), ("It\twas", "it was"), ("(It was)", "it was"),
    ("Sure: it was", "it was"), ("Sure, here you go: it was", "it was"), ("Okay. Speech: it was", "it was"),
    ("Sure: here is the transcription of the speech in the audio:\n\nIt was", "it was"),
    ("Certainly! Here's the full transcript of the provided\naudio: it was", "it was"),
    ("Here’s what the speaker says: it was", "it was"), ("Here is what is said in the recording: it was", "it was"),
    ("This is the transcription:it was", "it was"), ("The transcript is as follows: it was: the", "it was the"),
    ("**Transcription of the audio**: it was", "it was"), ("Transcription : it was", "it was"),
    ("The audio contains the following: it was", "it was"), ("Speaker 1: it was", "it was"),
]  # fmt: skip
SPEECH = [
    "He gave a speech about this: we must go.", "I liked the content: it was good.", "Here is the news: it was war.",
    "Sure enough: it was", "Sure, but he asked: was it?", "The speaker of the house: order!", "Yes: it was.",
    "The voice said: it was", "Turn down the audio: it was loud", "The transcript of the trial: it was long.",
    "Here is my advice about speech: be brief.", "Listen to the speaker: it was", "Surely the speaker says: no",
    "The speaker says it was", "This is it: the transcript", "The audio was bad: it was", "The words: it was",
]  # fmt: skip


@pytest.mark.parametrize(("text", "want"), SPOKEN)
def test_read_spoken(text: str, want: str | None) -> None:
    assert read_spoken(text) == want


@pytest.mark.parametrize("text", SPEECH)
def test_words_before_a_colon_are_speech(text: str) -> None:
    assert read_spoken(text) == read_transcript(text)


def test_whole_texts() -> None:
    assert read_text(" Two. \n") == " Two. \n"
    assert read_text(" \n") is None
    assert read_answer(" A dog. ", ()) == "A dog"
    assert read_transcript("A dog.", ("x",)) == "a dog"


@pytest.mark.parametrize("parse", [read_choice, read_option])
def test_right_answers_read_as_themselves(parse: Callable[..., str | None]) -> None:
    for letter, option in zip("ABCD", OPTIONS, strict=True):
        assert parse(letter, OPTIONS) == (letter if parse is read_choice else option)


@pytest.mark.parametrize(
    ("answer", "options", "want"),
    [
        ("B", OPTIONS, "B"), ("b", OPTIONS, "B"), ("(b)", OPTIONS, "B"), ("Cat", OPTIONS, "B"),
        (" A train ", OPTIONS, "C"),
        ("Female ", ("male", "female"), "B"), ("A", ("C", "B", "A"), "C"), ("F", ("E", "F"), "B"),
        ("3", ("1", "3"), "B"),
    ],
)  # fmt: skip
def test_right_choice(answer: str, options: tuple[str, ...], want: str) -> None:
    assert right_choice(answer, options) == want


@pytest.mark.parametrize(
    ("answer", "options"), [("E", OPTIONS), ("dog", OPTIONS), ("", OPTIONS), ("x", ("x", "X")), ("AB", "AB")]
)
def test_no_right_choice(answer: str, options: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="neither a letter nor one of the options"):
        right_choice(answer, options)


def test_thirty_forms_each() -> None:
    assert min(map(len, (CHOICES, REAL, GENDER, SPOKEN))) >= 30
    assert all(len({text for text, _ in forms}) == len(forms) for forms in (CHOICES, REAL, GENDER, SPOKEN))
