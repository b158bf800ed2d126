"""Questions: known scenes have known answers, and what is ambiguous is not asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.questions import QUESTION_TASKS, Question, Vocabulary, ask, labels_of, role_of
from headrouter_pl.data.pocket.scenes import Event, Scene

Asker = Callable[..., list[Question]]


@pytest.fixture
def asked(tones_library: ClipLibrary) -> Asker:
    """Questions of one task about the first clips that have these labels, over several draws."""

    def questions(task: str, *labels: dict[str, str], draws: int = 12, length: float = 0.7) -> list[Question]:
        clips: list[int] = []
        for wanted in labels:
            clips.append(
                next(
                    i
                    for i, clip in enumerate(tones_library.clips)
                    if i not in clips and all(getattr(clip, name) == value for name, value in wanted.items())
                )
            )
        events = tuple(Event(clip, float(i), i + length) for i, clip in enumerate(clips))
        scene, vocabulary = Scene(float(len(clips)), events), Vocabulary(tones_library)
        found = []
        for seed in range(draws):
            found += [q for q in ask(scene, vocabulary, np.random.default_rng(seed)) if q.task == task]
        return found

    return questions


def speech(**labels: str) -> Clip:
    return Clip("usr/share/x", "x", "speech", **labels)


def of_task(
    task: str,
    clips: list[Clip],
    *,
    heard: int | None = None,
    events: list[int] | None = None,
    murmurs: Sequence[int] = (),
    speeds: Sequence[float] | None = None,
    draws: int = 12,
) -> list[Question]:
    """Questions of one task about these clips, or the first of them, or some, over several draws."""
    library = ClipLibrary(clips, [], [], [], [False] * len(clips), [], {}, "")
    loud = events or [i for i in range(len(clips if heard is None else clips[:heard])) if i not in murmurs]
    scene = Scene(
        9.0,
        tuple(Event(c, float(i), i + 0.9, speed=speeds[i] if speeds else 1.0) for i, c in enumerate(loud)),
        murmurs=tuple(Event(c, 0.0, 0.9) for c in murmurs),
    )
    draw = (ask(scene, Vocabulary(library), np.random.default_rng(seed)) for seed in range(draws))
    return [question for asked in draw for question in asked if question.task == task]


def first(library: ClipLibrary, **labels: str) -> Clip:
    return next(c for c in library.clips if all(getattr(c, name) == value for name, value in labels.items()))


NUMBER, OTHER_NUMBER, LETTER, WORD = ({"code": code} for code in ("7", "3", "B", "bravo"))
MAN, WOMAN = ({"voice": f"hedgewars/{name}"} for name in ("Pirate", "Singer"))
DRUM, BIRD, FLUTE, HARP = {"sound": "drum"}, {"sound": "bird"}, {"instrument": "flute"}, {"instrument": "harp"}
GREEK, FRENCH = ({"voice": f"someone/{name}"} for name in ("Greek", "French"))
PROMPT = {"voice": "asterisk/Carlo"}


@pytest.mark.parametrize(
    ("task", "labels", "answers", "evidence"),
    [
        ("code", [NUMBER, DRUM], {"7"}, (0,)),
        ("code", [DRUM, LETTER, MAN], {"B"}, (1,)),
        ("code", [WORD], {"bravo"}, (0,)),
        ("speaker", [NUMBER, MAN], {"Pirate"}, (1,)),
        ("language", [GREEK], {"Greek"}, (0,)),
        ("gender", [WOMAN, DRUM], {"woman"}, (0,)),
        ("same_speaker", [WOMAN, DRUM, WOMAN], {"yes"}, (0, 2)),
        ("same_speaker", [WOMAN, MAN], {"no"}, (0, 1)),
        ("first_speaker", [WOMAN, DRUM, MAN], {"man", "woman"}, (0, 2)),
        ("voice_count", [WOMAN, MAN, GREEK], {"3"}, (0, 1, 2)),
        ("voice_count", [WOMAN, WOMAN, MAN], {"2"}, (0, 1, 2)),
        ("sound", [WOMAN, BIRD], {"bird"}, (1,)),
        ("instrument", [FLUTE, WOMAN], {"flute"}, (0,)),
    ],
)
def test_known_answers(
    asked: Asker, task: str, labels: list[dict[str, str]], answers: set[str], evidence: tuple[int, ...]
) -> None:
    questions = [question for question in asked(task, *labels) if question.evidence == evidence]
    assert {question.answer for question in questions} == answers
    assert len({question.prompt for question in questions}) > 1


def test_answers_out_of_what_is_said(asked: Asker, tones_library: ClipLibrary) -> None:
    (phrase,) = {q.answer for q in asked("phrase", MAN, DRUM)}
    assert phrase == first(tones_library, **MAN).phrase
    (text,) = {q.answer for q in asked("transcription", PROMPT)}
    assert text == first(tones_library, **PROMPT).text.lower()
    item = next(clip for clip in tones_library.clips if clip.item)
    assert {q.answer for q in asked("object", {"item": item.item})} == {item.item, item.category}
    line = first(tones_library, room="fillets/cave")
    (answer,) = {q.answer for q in asked("line", {"english": line.english})}
    assert answer == line.english


def test_who_speaks_first_and_last(asked: Asker) -> None:
    for question in asked("first_speaker", WOMAN, MAN, draws=30):
        assert question.answer == ("woman" if "first" in question.prompt else "man")


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("code", [NUMBER, OTHER_NUMBER]),
        ("sound", [DRUM, BIRD]),
        ("instrument", [FLUTE, HARP]),
        ("sound", [BIRD, FLUTE]),  # the flute makes a sound that is not speech, too
        ("instrument", [DRUM, FLUTE]),
        ("same_speaker", [WOMAN, MAN, GREEK]),
        ("first_speaker", [MAN, MAN]),
        ("speaker", [GREEK, FRENCH]),
        ("line", [NUMBER, DRUM]),
        ("phrase", [NUMBER]),
    ],
)
def test_what_is_ambiguous_or_absent_is_not_asked(asked: Asker, task: str, labels: list[dict[str, str]]) -> None:
    assert not asked(task, *labels)


def test_a_number_and_a_letter_are_told_apart(asked: Asker) -> None:
    for question in asked("code", NUMBER, LETTER):
        assert question.answer == ("7" if "number" in question.prompt else "B")


def test_a_blip_of_speech_tells_no_language(asked: Asker) -> None:
    assert not asked("language", GREEK, length=0.4)


@pytest.mark.parametrize("task", ["code", "speaker", "language", "sound", "instrument", "phrase"])
def test_options(asked: Asker, task: str) -> None:
    questions = asked(task, NUMBER, GREEK, MAN, FLUTE if task == "instrument" else DRUM, draws=60)
    with_options = [question for question in questions if question.options]
    assert with_options
    if task != "phrase":
        assert len(with_options) < len(questions)
    for question in with_options:
        assert question.options.count(question.answer) == 1
        assert len(set(question.options)) == len(question.options) == 4 or task == "speaker"
        assert all(option in question.prompt for option in question.options)
        assert question.chance == pytest.approx(1 / len(question.options))
    places = {question.options.index(question.answer) for question in with_options}
    assert len(places) >= 3


def test_options_exclude_what_else_is_heard(asked: Asker, tones_library: ClipLibrary) -> None:
    for question in asked("speaker", MAN, WOMAN, PROMPT, draws=60):
        heard = {"Pirate", "Singer", "Carlo"} - {question.answer}
        assert not heard & set(question.options)
    two = {"phrase": sorted({clip.phrase for clip in tones_library.clips if clip.phrase})[3]}
    for question in asked("phrase", MAN, two, draws=60):
        if question.options:
            said = {first(tones_library, **MAN).phrase, two["phrase"]} - {question.answer}
            assert not said & set(question.options)


@pytest.mark.parametrize("words", ["press one", "the Fourth", "Golf", "an x-ray", "b", "oh"])
@pytest.mark.parametrize("quiet", [False, True])
def test_no_code_is_asked_for_where_another_voice_says_one(words: str, quiet: bool) -> None:
    clips = [speech(code="7", language="English"), speech(english=words, item="thing")]
    assert not of_task("code", clips, murmurs=[1] if quiet else [])
    clips[1] = speech(english="Someone's onerous twentieths", item="thing")
    assert of_task("code", clips, murmurs=[1] if quiet else [])
    clips[1] = speech(code="B", language="English")  # which number, which letter
    assert {question.answer for question in of_task("code", clips)} == {"7", "B"}


def test_a_kind_of_animal_is_not_an_option_beside_another() -> None:
    others = [speech(item=name, category=name) for name in ("animal", "bird", "fish", "insect", "tool", "food")]
    clips = [speech(item="gull", category="bird", english="gull"), *others]
    questions = [q for q in of_task("object", clips, heard=1, draws=40) if q.answer == "bird"]
    assert questions
    assert {option for question in questions for option in question.options} == {"bird", "tool", "food"}


def test_a_thing_without_a_category_is_referred_to_by_order() -> None:
    clips = [speech(item="yeti", gender="man"), speech(gender="woman")]
    prompts = [question.prompt for question in of_task("gender", clips, draws=40)]
    assert prompts
    assert not any("names the" in prompt for prompt in prompts)
    clips = [speech(item="gull", category="bird", gender="man"), speech(gender="woman")]
    assert any("the voice that names the bird" in question.prompt for question in of_task("gender", clips, draws=40))


@pytest.mark.parametrize("task", ["same_speaker", "voice_count"])
def test_one_voice_at_two_speeds_is_not_asked_about(task: str) -> None:
    clips = [speech(voice="x/a", content="one thing"), speech(voice="x/a", content="another")]
    assert {question.answer for question in of_task(task, clips, speeds=[1.1, 1.1])} <= {"yes", "1"}
    assert of_task(task, clips, speeds=[1.1, 1.1])
    assert not of_task(task, clips, speeds=[1.0, 1.1])
    assert of_task(task, [clips[0], speech(voice="x/b")], speeds=[1.0, 1.1])


def test_one_recording_twice_is_not_asked_about() -> None:
    assert not of_task("same_speaker", [speech(voice="x/a")], events=[0, 0])


def test_the_radio_alphabet_is_of_no_language() -> None:
    word = speech(code="bravo", language="Italian")
    assert not of_task("language", [word])
    assert labels_of(word) == {"word": "bravo"}
    assert of_task("language", [speech(code="7", language="Italian")])


def test_ordinals_count_speech_alone(asked: Asker) -> None:
    for question in asked("gender", MAN, DRUM, WOMAN, draws=30):
        if "first voice" in question.prompt:
            assert question.evidence == (0,)
        if "second voice" in question.prompt or "last voice" in question.prompt:
            assert question.evidence == (2,)


def test_roles() -> None:
    speech = {"key": "k", "package": "p", "kind": "speech"}
    assert role_of(Clip(**speech, code="7", language="English")) == "number"
    assert role_of(Clip(**speech, code="7", language="Walloon")) == ""
    assert role_of(Clip(**speech, english="press two for help")) == ""  # lest a scene hold two numbers
    assert role_of(Clip(**speech, english="please hold")) == "prompt"
    assert role_of(Clip(**speech, language="Mandarin", content="mandarin:ma3")) == "prompt"  # a tone, not a number
    assert role_of(Clip(**speech, language="English", content="option 3")) == ""
    assert role_of(Clip("k", "p", "sound", sound="whoosh")) == ""
    assert role_of(Clip("k", "p", "background")) == ""


def test_every_task_has_one_of_three_types() -> None:
    types = [task.type for task in QUESTION_TASKS.values()]
    assert set(types) == {"semantic", "voice", "sound"}
    assert types.count("semantic") >= 4
    assert len(types) - types.count("semantic") >= 4
