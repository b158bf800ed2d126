"""Which recordings a scene of the benchmark is made of, so that over a split no answer is likelier than another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.pools import Pools
from headrouter_pl.data.pocket.questions import (
    LANGUAGES,
    MIN_LANGUAGE_SECONDS,
    Question,
    Vocabulary,
    ask,
    is_named,
    may_spell,
    role_of,
)
from headrouter_pl.data.pocket.scenes import Scene, lay_out
from headrouter_pl.data.pocket.splits import held_out

__all__ = ["Casting", "label_of"]

_CONTENT_TASKS = ("code", "phrase", "object", "line", "transcription", "speaker", "language", "gender")
PEOPLE = {"same_speaker": ("yes", "no"), "voice_count": ("1", "2", "3"), "first_speaker": ("man", "woman")}
"""Tasks about who and how many -> their answers."""

_SPEECH_ROLES = ("number", "letter", "word", "phrase", "item", "room", "prompt")
_SHARED_ROLES = ("phrase", "room", "prompt", "")  # of which a scene may hold several
_USES = 2  # how often a clip is evidence, unless there is no other
_MOST_SPEECH = 6  # voices are counted up to the sixth
_FILLED = 0.93  # of a scene at most, so that something is left to place clips in
_LEAST = 0.8  # seconds to keep free for each clip to come


def label_of(task: str, clip: Clip) -> tuple[str, ...]:
    """What a clip would answer if it were asked, from the coarse to the fine; empty if it cannot be asked.

    On every level, the labels are drawn evenly: a language first, then one of its voices.
    """
    role = role_of(clip)
    if task == "code" and role in ("number", "letter", "word"):
        return role, clip.code
    if task == "phrase" and role == "phrase":
        return (clip.english,)
    if task == "object" and role == "item" and clip.category:
        return clip.category, clip.item
    if task == "line" and role == "room" and clip.english and "%" not in clip.english:
        return clip.language, clip.english
    if task == "transcription" and clip.kind == "speech" and clip.language == "English":
        words = clip.text.lower().strip(" .!?").split()
        # One clock says "the time is" far more often than others say anything.
        return (" ".join(words),) if 2 <= len(words) <= 12 and not clip.voice.startswith("saytime/") else ()
    if task == "speaker" and is_named(clip.voice) and role in ("prompt", "phrase", "item"):
        return clip.voice, clip.content
    if task == "language" and clip.kind == "speech" and clip.language in LANGUAGES and not clip.code:
        return clip.language, clip.voice
    if task == "gender" and clip.gender and role in ("prompt", "room", "item", "number"):
        return clip.gender, clip.voice
    if task in ("sound", "instrument") and role == task:
        return getattr(clip, task), clip.content
    return ()


class Casting:
    """Draws the scenes of one split, one after another: the least used answer first, then its least used clip.

    Args:
        library: All clips.
        split: Which of them to draw from.
    """

    def __init__(self, library: ClipLibrary, split: str) -> None:
        self.library = library
        self.pools = Pools.of(library, split)
        self.vocabularies: dict[float, Vocabulary] = {}
        members = [i for i, its_split in enumerate(library.splits) if its_split == split]
        self.roles = {i: role_of(library.clips[i]) for i in members}
        self.spelling = {i for i in members if may_spell(library.clips[i])}
        self.labels: dict[str, dict[int, tuple[str, ...]]] = {}
        for task in (*_CONTENT_TASKS, "sound", "instrument"):
            labels = {i: label_of(task, library.clips[i]) for i in members if not library.cut[i]}
            self.labels[task] = {i: label for i, label in labels.items() if label}
        self.voices = [i for i in members if self.roles[i] in _SPEECH_ROLES and library.clips[i].voice]
        # (Seconds, or 0 for all lengths; task and label) -> how often it was the answer.
        self.answers: Counter[tuple[int, tuple[str, ...]]] = Counter()
        self.evidence: Counter[int] = Counter()

    def draw(
        self, rng: np.random.Generator, seconds: int, slots: int, tasks: Sequence[str]
    ) -> tuple[Scene, list[Question]]:
        """A scene that can be asked all tasks, each with one answer; drawn until one is found.

        Args:
            rng: Source of all choices.
            seconds: Its length.
            slots: Recordings in it, at most.
            tasks: What to ask: one question of each.

        Raises:
            AudioError: If no clips fit.
        """
        failed: Counter[int] = Counter()
        vocabulary = self._vocabulary(seconds)
        for _ in range(300):
            cast = _Cast(self, rng, seconds, slots, tasks, failed)
            if cast.fill():
                clips = [cast.clips[i] for i in rng.permutation(len(cast.clips))]
                scene = lay_out(
                    rng, self.library, clips, seconds, murmurs=cast.murmurs(), backgrounds=self.pools.backgrounds
                )
                chosen: dict[str, Question] = {}
                for _ in range(8):  # other phrasings, with and without options
                    for question in rng.permutation(np.array(ask(scene, vocabulary, rng), dtype=object)):
                        if question.task in tasks and question.task not in chosen and cast.accepts(question, scene):
                            chosen[question.task] = question
                    if len(chosen) == len(tasks):
                        self._count(cast, seconds)
                        return scene, [chosen[task] for task in tasks]
            failed.update(cast.clips)
        raise AudioError(f"no clips for a scene of {seconds} s that can be asked {', '.join(tasks)}")

    def rank(self, task: str, label: Sequence[str], seconds: int) -> tuple[int, ...]:
        """How often a label was the answer: level by level, first at this length, then at all."""
        parts = [(task, *label[:level]) for level in range(1, len(label) + 1)]
        return tuple(count for part in parts for count in (self.answers[(seconds, part)], self.answers[(0, part)]))

    def _count(self, cast: _Cast, seconds: int) -> None:
        labels = {task: self.labels[task][clip] for task, clip in cast.evidence.items()}
        for task, label in (labels | {task: (answer,) for task, answer in cast.wanted.items()}).items():
            parts = [(task, *label[:level]) for level in range(1, len(label) + 1)]
            self.answers.update((length, part) for part in parts for length in (seconds, 0))
        self.evidence.update(cast.evidence.values() if not cast.wanted else cast.speech())

    def _vocabulary(self, seconds: int) -> Vocabulary:
        """Wrong lines are of the split and as short as the right ones: neither is to be known by its looks."""
        longest = _longest(seconds)
        if longest not in self.vocabularies:
            short = (i for i in self.labels["line"] if self.library.seconds(i) <= longest)
            self.vocabularies[longest] = Vocabulary(self.library).with_lines(short)
        return self.vocabularies[longest]


def _longest(seconds: int) -> float:
    """Seconds of a clip, at most."""
    return seconds * 0.4


class _Cast:
    """The clips of one scene, while they are drawn.

    Attributes:
        clips: All of them.
        evidence: Task -> the clip that it asks for; not for tasks about all voices.
        wanted: Answers of the tasks about all voices.
    """

    def __init__(
        self,
        casting: Casting,
        rng: np.random.Generator,
        seconds: int,
        slots: int,
        tasks: Sequence[str],
        failed: Counter[int],
    ) -> None:
        self.casting, self.library, self.rng = casting, casting.library, rng
        self.seconds, self.slots, self.tasks, self.failed = seconds, slots, tasks, failed
        self.free = seconds * _FILLED
        self.clips: list[int] = []
        self.evidence: dict[str, int] = {}
        self.wanted: dict[str, str] = {}

    def clip(self, index: int) -> Clip:
        return self.library.clips[index]

    def speech(self) -> list[int]:
        return [i for i in self.clips if self.clip(i).kind == "speech"]

    def fill(self) -> bool:
        """Draws all clips; False if the draw led nowhere."""
        for number, task in enumerate(self.tasks):
            reserve = _LEAST * (len(self.tasks) - number - 1)
            if not (self._people(task) if task in PEOPLE else self._evidence(task, reserve)):
                return False
        while len(self.clips) < self.slots:  # competing clips
            speech = len(self.speech())
            heard = speech < len(self.clips)
            voices = not self.wanted and speech < _MOST_SPEECH and (speech < 2 or heard)
            if not (voices and self._add(_SPEECH_ROLES)) and (heard or not self._add(("sound", "instrument"))):
                break
        return len(self.clips) <= self.slots

    def murmurs(self) -> list[int]:
        """Clips that may be heard quietly: none where voices are counted."""
        if self.wanted:
            return []
        fitting = (i for i in self.casting.pools.murmurs if self.library.seconds(i) < self.seconds / 2)
        return [i for i in fitting if "code" not in self.tasks or i not in self.casting.spelling]

    def accepts(self, question: Question, scene: Scene) -> bool:
        """Whether a question has the answer and the evidence that were drawn, and is fair."""
        if question.task in self.wanted:
            return question.answer == self.wanted[question.task]
        (event,) = question.evidence
        if scene.events[event].clip != self.evidence[question.task]:
            return False
        if question.task == "transcription":
            return " " in question.answer
        if question.task == "phrase" and not question.options:  # a phrase that was trained, by another voice
            return held_out(self.clip(self.evidence["phrase"]).content) == "train"
        quiet = {self.clip(murmur.clip).english for murmur in scene.murmurs}
        return not quiet.intersection(question.options)

    def _fits(self, index: int, reserve: float = 0.0) -> bool:
        """Whether a clip may come in: it is short enough, and of what is asked it adds no second answer."""
        length, role = self.library.seconds(index), self.casting.roles[index]
        if length > min(_longest(self.seconds), self.free - reserve) or index in self.clips:
            return False
        if self.clip(index).kind == "sound":  # a drum is a sound and an instrument: only one of the two is heard
            return all(self.clip(i).kind == "speech" for i in self.clips)
        if "code" in self.tasks and index in self.casting.spelling:
            return False
        return role in _SHARED_ROLES or all(self.casting.roles[i] != role for i in self.clips)

    def _take(self, index: int | None) -> bool:
        if index is None:
            return False
        self.clips.append(index)
        self.free -= self.library.seconds(index)
        return True

    def _least(self, clips: Iterable[int], rank: Callable[[int], tuple[int, ...]] = lambda index: ()) -> int | None:
        """The clip that was used least: those that led nowhere and those that were evidence twice come last."""

        def key(index: int) -> tuple[float, ...]:
            uses = self.casting.evidence[index]
            return (self.failed[index] // 3, max(uses - _USES + 1, 0), *rank(index), uses, self.rng.random())

        return min(clips, key=key, default=None)

    def _evidence(self, task: str, reserve: float) -> bool:
        labels = self.casting.labels[task]
        fitting = [i for i in labels if self._fits(i, reserve)]
        if task == "language":
            fitting = [i for i in fitting if self.library.seconds(i) >= MIN_LANGUAGE_SECONDS]
        if "first_speaker" in self.tasks:
            fitting = [i for i in fitting if self.clip(i).gender]
        index = self._least(fitting, lambda i: self.casting.rank(task, labels[i], self.seconds))
        if index is not None:
            self.evidence[task] = index
        return self._take(index)

    def _people(self, task: str) -> bool:
        """Adds voices to the one that is there, so that the answer is the one given least often."""
        answers = PEOPLE[task]
        order = self.rng.permutation(answers).tolist()
        answer = self.wanted[task] = min(order, key=lambda a: self.casting.rank(task, (a,), self.seconds))
        if task == "first_speaker":
            other = {"man": "woman", "woman": "man"}[self.clip(self.clips[0]).gender]
            return self._voice(i for i in self.casting.voices if self.clip(i).gender == other)
        voices = {"yes": 1, "no": 2}.get(answer) or int(answer)
        language = self.clip(self.clips[0]).language
        for number in range(1, 2 if task == "same_speaker" else 3):
            known = {self.clip(i).voice for i in self.clips}
            others = [i for i in self.casting.voices if (self.clip(i).voice in known) == (number >= voices)]
            # In half of the cases another voice speaks the same language, if it can: languages do not tell.
            alike = [i for i in others if self.clip(i).language == language]
            preferred = alike if number < voices and self.rng.random() < 0.5 else others
            if not self._voice(preferred) and not self._voice(others):
                return False
        return True

    def _voice(self, clips: Iterable[int]) -> bool:
        return self._take(self._least(i for i in clips if self._fits(i)))

    def _add(self, roles: Sequence[str]) -> bool:
        """Adds a clip of one of the roles, whichever."""
        for role in self.rng.permutation(roles):
            # Fits are tried one by one: most do, and there are many.
            for _ in range(10):
                index = self.casting.pools.draw(self.rng, str(role), min(_longest(self.seconds), max(self.free, 0.0)))
                if index is not None and self._fits(index):
                    return self._take(index)
        return False
