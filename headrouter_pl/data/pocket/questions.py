"""Questions about a scene, by task. To add a task: a function that asks, and a line in :data:`QUESTION_TASKS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.scenes import Event, Scene
from headrouter_pl.data.pocket.sources._text import NATO

__all__ = ["QUESTION_TASKS", "Question", "QuestionTask", "Vocabulary", "ask", "role_of"]

NUMBER_LANGUAGES = frozenset({"English", "Spanish", "French", "Italian", "Russian"})
LANGUAGES = frozenset(
    {
        "English", "Spanish", "French", "Italian", "Russian", "Czech", "Dutch", "Mandarin", "Greek", "Romanian",
        "Bulgarian", "Catalan",
    }
)  # fmt: skip
"""Languages that are asked for: those of which there is enough."""

SOUNDS = frozenset(
    {
        "drum", "cymbal", "keyboard", "mammal", "bird", "insect", "monster", "machine", "weapon", "tool", "water",
        "fire", "footsteps", "explosion", "bell", "door",
    }
)  # fmt: skip
"""Kinds of sound that are asked for: those that several independent recordings show and a person can tell apart."""

_NUMERALS = (
    r"zero|oh|one|two|twelf|three|thir|four|fif|five|six|seven|eight?|nine?|ten|eleven|twelve|(twen|thir|for|fif|six"
    r"|seven|eigh|nine)t(y|ie)|(thir|four|fif|six|seven|eigh|nine)teen|hundred|thousand|million|billion|first|second|third"
)
_SPELLED = re.compile(
    rf"\d|(?<!')\b((?:{_NUMERALS})(?:th)?|letter:.*|[b-hj-z]|{'|'.join(NATO.values())}|x-ray)\b", re.IGNORECASE
)
NAMED_VOICES = frozenset(
    f"{source}/{name}"
    for source, names in {
        "hedgewars": "Default Mobster Pirate Singer HillBilly",
        "asterisk": "Allison Carlo June Menardi",
    }.items()
    for name in names.split()
)
"""Voices that have a name, and are heard in training."""

MIN_LANGUAGE_SECONDS = 0.5
"""Of a recording, at least, whose language is asked."""

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_CHOICES = 4


@dataclass(frozen=True)
class Question:
    """One question about a scene.

    Attributes:
        task: Name of its task.
        prompt: The question.
        answer: The right answer.
        options: Possible answers named in the prompt; empty for open questions.
        evidence: Indices of the scene's events that must be heard to answer.
        chance: Probability of a blind guess to be right.
    """

    task: str
    prompt: str
    answer: str
    options: tuple[str, ...]
    evidence: tuple[int, ...]
    chance: float


def role_of(clip: Clip) -> str:
    """What a clip can be asked about: the most telling label it has; empty for none.

    Prompts that spell numbers, letters or code words have none, lest a scene hold two numbers.
    """
    if clip.kind == "sound":
        return "instrument" if clip.instrument else "sound" if clip.sound in SOUNDS else ""
    if clip.kind != "speech":
        return ""
    if clip.code.isdigit():
        return "number" if clip.language in NUMBER_LANGUAGES else ""
    if len(clip.code) == 1:
        return "letter" if clip.language == "English" else ""
    if clip.code:
        return "word"
    if role := next((role for role in ("phrase", "item", "room") if getattr(clip, role)), ""):
        return role
    said = re.sub(r"\d$", "", clip.content) if clip.language == "Mandarin" else clip.content  # a syllable's tone
    return "" if _SPELLED.search(f"{clip.english} {said}") else "prompt"


def may_spell(clip: Clip) -> bool:
    """Whether a clip that is no code word says a number, a letter or a code word, as far as its wording is known."""
    if clip.kind != "speech" or clip.code:
        return False
    return role_of(clip) == "" or _SPELLED.search(f"{clip.english} {clip.text}") is not None


ROLE_LABEL = {
    "number": "code",
    "letter": "code",
    "word": "code",
    "phrase": "english",
    "item": "item",
    "sound": "sound",
    "instrument": "instrument",
}
"""Role -> the label of a clip that answers a question about it."""

# Categories that do not name one thing.
_THINGS = {
    "clothes": "piece of clothing",
    "furniture": "piece of furniture",
    "household": "household item",
    "weather": "kind of weather",
}
_ANIMALS = ("animal", "bird", "fish", "insect")
_ROLE_NAMES = {"number": "number", "letter": "letter", "word": "code word", "item": "{category}"}


@dataclass(frozen=True)
class Vocabulary:
    """What wrong options are drawn from: every answer that a role has anywhere in the library.

    Attributes:
        library: The clips.
    """

    library: ClipLibrary

    @cached_property
    def answers(self) -> dict[str, list[str]]:
        """Role -> its answers, sorted; also ``"voice"``, ``"language"``, ``"category"`` and ``"room"`` (lines)."""
        found: dict[str, set[str]] = {}
        for clip, cut in zip(self.library.clips, self.library.cut, strict=True):
            role = role_of(clip)
            if role in ROLE_LABEL:
                found.setdefault(role, set()).add(getattr(clip, ROLE_LABEL[role]))
            if role == "room" and clip.english and not cut:
                found.setdefault("room", set()).add(clip.english)
            if clip.kind == "speech":
                found.setdefault("language", set()).update({clip.language} & LANGUAGES)
                if is_named(clip.voice):
                    found.setdefault("voice", set()).add(voice_name(clip))
            if clip.category:
                found.setdefault("category", set()).add(clip.category)
        return {name: sorted(values - {""}) for name, values in found.items()}

    def with_lines(self, clips: Iterable[int]) -> Vocabulary:
        """The same, with wrong lines of these clips alone: none may be known by its split, or by its length."""
        limited = Vocabulary(self.library)
        limited.answers["room"] = sorted({self.library.clips[i].english for i in clips} - {""})
        return limited

    @cached_property
    def category(self) -> dict[str, str]:
        """Item -> category."""
        return {clip.item: clip.category for clip in self.library.clips if clip.item}


def is_named(voice: str) -> bool:
    """Whether a voice has a name that questions may use."""
    return voice in NAMED_VOICES


def voice_name(clip: Clip) -> str:
    """A voice's name, as questions use it."""
    return clip.voice.split("/")[-1]


def heard(library: ClipLibrary, event: Event) -> Clip:
    """The clip of an event; played at another speed, its voice is nobody's."""
    clip = library.clips[event.clip]
    return clip if event.speed == 1.0 else replace(clip, voice=f"{clip.voice}*{event.speed:.2f}" if clip.voice else "")


@dataclass
class Context:
    """A scene while questions are made about it."""

    rng: np.random.Generator
    scene: Scene
    vocabulary: Vocabulary
    choices: float
    clips: list[Clip] = field(init=False)
    roles: list[str] = field(init=False)
    speech: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.clips = [heard(self.vocabulary.library, event) for event in self.scene.events]
        self.roles = [role_of(clip) for clip in self.clips]
        self.speech = [index for index, clip in enumerate(self.clips) if clip.kind == "speech"]

    def alone(self, role: str) -> int | None:
        """The one event of a role; None if there is none, or several."""
        return self.roles.index(role) if self.roles.count(role) == 1 else None

    def changed(self) -> bool:
        """Whether one recorded voice is heard at two speeds: nobody can tell whether that is one person or two."""
        recorded = {self.vocabulary.library.clips[self.scene.events[i].clip].voice for i in self.speech}
        return len(recorded) < len({self.clips[i].voice for i in self.speech})

    def pick(self, *phrasings: str) -> str:
        """One phrasing."""
        return phrasings[int(self.rng.integers(len(phrasings)))]

    def refer(self, event: int) -> str:
        """Names a speech event: by what it says ("the number"), by order, or as the only voice."""
        names = []
        if len(self.speech) == 1:
            names.append(self.pick("the voice", "the speaker"))
        else:
            place = self.speech.index(event)
            if place < len(_ORDINALS):
                names.append(f"the {_ORDINALS[place]} voice")
            if place == len(self.speech) - 1:
                names.append("the last voice")
        if self.roles[event] in _ROLE_NAMES and self.alone(self.roles[event]) is not None:
            verb = "names" if self.roles[event] == "item" else "says"
            category = self.clips[event].category
            name = _ROLE_NAMES[self.roles[event]].format(category=_THINGS.get(category, category))
            if name:  # not every thing has a category
                names.append(f"the voice that {verb} the {name}")
        return self.pick(*names) if names else ""

    def question(
        self,
        task: str,
        prompt: str,
        answer: str,
        pool: Sequence[str],
        evidence: Sequence[int],
        *,
        exclude: Sequence[str] = (),
        choices: bool | None = None,
    ) -> Question:
        """A question with options (four, the right one among them, in random order) or without."""
        options: list[str] = []
        wrong = [option for option in pool if option != answer and option not in exclude]
        if choices is None:
            choices = self.rng.random() < self.choices
        if choices and wrong:
            count = min(_CHOICES - 1, len(wrong))
            options = [answer, *(wrong[i] for i in self.rng.choice(len(wrong), count, replace=False))]
            self.rng.shuffle(options)
            prompt = f"{prompt.rstrip('?.')}: {_listed(options)}?"
        chance = 1 / len(options) if options else 1 / max(len(pool), 1)
        return Question(task, prompt, answer, tuple(options), tuple(evidence), chance)


def _listed(options: Sequence[str]) -> str:
    return ", ".join(options[:-1]) + " or " + options[-1]


def _code(c: Context) -> Iterator[Question]:
    quiet = [c.vocabulary.library.clips[murmur.clip] for murmur in c.scene.murmurs]
    if any(may_spell(clip) for clip in (*c.clips, *quiet)):
        return
    for role, what in (("number", "number"), ("letter", "letter"), ("word", "word of the radio alphabet")):
        if (event := c.alone(role)) is not None:
            prompt = c.pick(f"Which {what} is said?", f"What {what} do you hear?", f"Name the {what} that is spoken.")
            yield c.question("code", prompt, c.clips[event].code, c.vocabulary.answers[role], [event])


def _phrase(c: Context) -> Iterator[Question]:
    for event in (i for i, role in enumerate(c.roles) if role == "phrase"):
        said = [clip.english for clip in c.clips if clip.kind == "speech"]
        answer = c.clips[event].english
        if said.count(answer) > 1:
            continue
        if c.rng.random() < c.choices:
            prompt = c.pick("Which of these is said?", "Which of these phrases do you hear?")
            yield c.question(
                "phrase", prompt, answer, c.vocabulary.answers["phrase"], [event], exclude=said, choices=True
            )
        elif ref := c.refer(event):
            prompt = c.pick(f"What does {ref} say?", f"Which phrase does {ref} say?")
            yield c.question("phrase", prompt, answer, c.vocabulary.answers["phrase"], [event], choices=False)


def _object(c: Context) -> Iterator[Question]:
    if (event := c.alone("item")) is None or not c.clips[event].category:
        return
    clip = c.clips[event]
    pool, categories = c.vocabulary.answers["item"], c.vocabulary.category
    if c.rng.random() < 0.4:
        prompt = c.pick("What kind of thing is named?", "To which kind does the thing that is named belong?")
        names = c.vocabulary.answers["category"]
        others = _ANIMALS if clip.category in _ANIMALS else ()  # a bird is an animal, too
        yield c.question("object", prompt, clip.category, names, [event], exclude=others, choices=True)
    else:
        same = [item for item in pool if categories[item] == clip.category]
        thing = _THINGS.get(clip.category, clip.category)
        prompt = c.pick(f"Which {thing} is named?", f"What {thing} does somebody name, in English?")
        yield c.question("object", prompt, clip.item, same if len(same) > _CHOICES else pool, [event])


def _line(c: Context) -> Iterator[Question]:
    lines = [i for i, role in enumerate(c.roles) if role == "room" and c.clips[i].english]
    for event in lines:
        said = [clip.english for clip in c.clips]
        prompt = c.pick("Which line is said, in translation?", "What is the meaning of the line in this dialogue?")
        yield c.question(
            "line", prompt, c.clips[event].english, c.vocabulary.answers["room"], [event], exclude=said, choices=True
        )


def _transcription(c: Context) -> Iterator[Question]:
    for event in c.speech:
        clip = c.clips[event]
        text = _plain(clip.text)
        whole = not c.vocabulary.library.cut[c.scene.events[event].clip]
        if clip.language == "English" and whole and 1 <= len(text.split()) <= 12 and (ref := c.refer(event)):
            prompt = c.pick(f"Transcribe what {ref} says.", f"Write down the words of {ref}.")
            yield Question("transcription", prompt, text, (), (event,), 0.0)


def spoken_text(clip: Clip) -> str:
    """What a clip says, as transcripts are written; empty if it is not English, or not known."""
    return _plain(clip.text) if clip.kind == "speech" and clip.language == "English" else ""


def labels_of(clip: Clip) -> dict[str, str]:
    """What can be told of a clip in one word or phrase: attribute -> label."""
    role = role_of(clip)
    found = {role: getattr(clip, ROLE_LABEL[role])} if role in ROLE_LABEL else {}
    if clip.kind == "speech":
        found |= {"gender": clip.gender, "category": clip.category}
        found["language"] = clip.language if clip.language in LANGUAGES and role != "word" else ""  # alpha is of none
        found["voice"] = voice_name(clip) if is_named(clip.voice) else ""
    return {name: label for name, label in found.items() if label}


def _plain(text: str) -> str:
    """Lower case, letters, digits and apostrophes only."""
    return " ".join(re.findall(r"[\w'-]+", text.lower()))


def _speaker(c: Context) -> Iterator[Question]:
    voices = [clip.voice for clip in c.clips]
    for event in c.speech:
        clip = c.clips[event]
        if is_named(clip.voice) and (ref := c.refer(event)):
            prompt = c.pick(f"Whose voice is {ref}?", f"Who is {ref}?")
            others = [voice_name(other) for i, other in enumerate(c.clips) if i != event and voices[i] != clip.voice]
            yield c.question(
                "speaker", prompt, voice_name(clip), c.vocabulary.answers["voice"], [event], exclude=others
            )


def _language(c: Context) -> Iterator[Question]:
    for event in c.speech:
        span = c.scene.events[event]
        long_enough = span.end - span.start >= MIN_LANGUAGE_SECONDS
        known = (
            c.clips[event].language in LANGUAGES and c.roles[event] != "word"
        )  # the radio alphabet is of no language
        if known and long_enough and (ref := c.refer(event)):
            prompt = c.pick(f"Which language does {ref} speak?", f"In which language is {ref} speaking?")
            yield c.question("language", prompt, c.clips[event].language, c.vocabulary.answers["language"], [event])


def _gender(c: Context) -> Iterator[Question]:
    for event in c.speech:
        if c.clips[event].gender and (ref := c.refer(event)):
            sides = c.pick("a man or a woman", "a woman or a man")
            prompt = c.pick(f"Is {ref} {sides}?", f"Does {ref} belong to {sides}?")
            yield Question("gender", prompt, c.clips[event].gender, ("man", "woman"), (event,), 0.5)


def _same_speaker(c: Context) -> Iterator[Question]:
    if len(c.speech) == 2 and all(c.clips[i].voice for i in c.speech) and not c.changed():
        first, second = (c.clips[i] for i in c.speech)
        if c.scene.events[c.speech[0]].clip == c.scene.events[c.speech[1]].clip:  # heard without knowing any voice
            return
        prompt = c.pick("Do the two voices belong to the same person?", "Is it the same person who speaks twice?")
        answer = "yes" if first.voice == second.voice else "no"
        yield Question("same_speaker", prompt, answer, ("yes", "no"), tuple(c.speech), 0.5)


def _first_speaker(c: Context) -> Iterator[Question]:
    genders = [c.clips[i].gender for i in c.speech]
    if len(set(genders)) == 2 and "" not in genders:
        sides = c.pick("the man or the woman", "the woman or the man")
        when, event = (("first", c.speech[0]), ("last", c.speech[-1]))[int(c.rng.integers(2))]
        prompt = f"Who speaks {when}, {sides}?"
        yield Question("first_speaker", prompt, c.clips[event].gender, ("man", "woman"), tuple(c.speech), 0.5)


def _voice_count(c: Context) -> Iterator[Question]:
    voices = {c.clips[i].voice for i in c.speech}
    if 1 <= len(voices) <= 4 and "" not in voices and len(c.speech) <= 5 and not c.changed():
        prompt = c.pick("How many different people speak?", "How many people can be heard speaking?")
        yield Question("voice_count", prompt, str(len(voices)), (), tuple(c.speech), 1 / 3)


def _sound(c: Context) -> Iterator[Question]:
    # An instrument is a sound that is not speech, too, and drums are instruments.
    if (event := c.alone("sound")) is not None and "instrument" not in c.roles:
        prompt = c.pick("Which kind of sound is heard?", "What makes the sound that is not speech?")
        yield c.question("sound", prompt, c.clips[event].sound, c.vocabulary.answers["sound"], [event])


def _instrument(c: Context) -> Iterator[Question]:
    drums = any(clip.sound in ("drum", "cymbal") for clip in c.clips)
    if (event := c.alone("instrument")) is not None and not drums:
        prompt = c.pick("Which instrument is played?", "What instrument do you hear?")
        yield c.question("instrument", prompt, c.clips[event].instrument, c.vocabulary.answers["instrument"], [event])


@dataclass(frozen=True)
class QuestionTask:
    """One kind of question.

    Attributes:
        name: Its key in :data:`QUESTION_TASKS`.
        type: ``"semantic"``, ``"voice"`` or ``"sound"``.
        ask: Yields the questions of this kind that a scene allows without ambiguity.
    """

    name: str
    type: str
    ask: Callable[[Context], Iterator[Question]]


QUESTION_TASKS: dict[str, QuestionTask] = {
    task.name: task
    for task in (
        QuestionTask("code", "semantic", _code),
        QuestionTask("phrase", "semantic", _phrase),
        QuestionTask("object", "semantic", _object),
        QuestionTask("line", "semantic", _line),
        QuestionTask("transcription", "semantic", _transcription),
        QuestionTask("speaker", "voice", _speaker),
        QuestionTask("language", "voice", _language),
        QuestionTask("gender", "voice", _gender),
        QuestionTask("same_speaker", "voice", _same_speaker),
        QuestionTask("first_speaker", "voice", _first_speaker),
        QuestionTask("voice_count", "voice", _voice_count),
        QuestionTask("sound", "sound", _sound),
        QuestionTask("instrument", "sound", _instrument),
    )
}
"""Tasks of the Pocket benchmark by name."""


def ask(scene: Scene, vocabulary: Vocabulary, rng: np.random.Generator, *, choices: float = 0.5) -> list[Question]:
    """All questions that a scene allows.

    Args:
        scene: The scene.
        vocabulary: Where options come from.
        rng: Chooses phrasings and options.
        choices: Share of questions that name options, where a task has both forms.
    """
    context = Context(rng, scene, vocabulary, choices)
    return [question for task in QUESTION_TASKS.values() for question in task.ask(context)]
