"""The ten tasks of AudioMarathon (arXiv 2510.07293).

Questions and options come from its files. The sentences around them are ours, in the form of the authors' prompts: what
to listen for, the question, a lettered option a line, and that the letter alone is wanted.
"""

from __future__ import annotations

from functools import partial

from headrouter_pl.tasks.base import Task
from headrouter_pl.tasks.metrics import AnswerAccuracy, CorpusWER, MacroF1, MeanWER
from headrouter_pl.tasks.parsers import read_choice, read_option, read_spoken

_LETTER = "\n\n{question}\n{options}\n\nAnswer with the letter of the correct option only ({letters})."
_A_OR_B = "\n\nIf it is {a}, answer 'a'. If it is {b}, answer 'b'. Answer with 'a' or 'b' only."
_REAL = {
    "real": ("authentic", "genuine", "completely real", "completely authentic"),
    "fake": ("artificial", "synthetic", "synthesized", "synthesised"),
}
_GENDER = {"male": ("man", "masculine"), "female": ("woman", "feminine")}

_choice = partial(Task, parse=read_choice, metric=MacroF1, max_new_tokens=5, also={"accuracy": AnswerAccuracy})

PREFIX = "audiomarathon-"
AUDIOMARATHON = (
    _choice(
        name=f"{PREFIX}ser",
        type="semantic",
        prompt="Listen to the speech for the names and entities that are spoken of, and answer the question." + _LETTER,
    ),
    _choice(
        name=f"{PREFIX}scr",
        type="semantic",
        prompt="Listen to the passage that is read aloud, and answer the question by what is said in it." + _LETTER,
    ),
    Task(
        name=f"{PREFIX}asr",
        type="semantic",
        prompt="Transcribe the speech exactly, without hesitations such as 'um' and 'uh'. Give the transcript only.",
        parse=read_spoken,
        metric=MeanWER,
        also={"corpus_wer": CorpusWER},
        max_new_tokens=1100,
    ),
    _choice(
        name=f"{PREFIX}sed",
        type="sound",
        prompt="Listen to the recording for the sound events in it, and answer the question." + _LETTER,
    ),
    _choice(
        name=f"{PREFIX}mc",
        type="sound",
        prompt="Listen to the music for its genre, and answer the question." + _LETTER,
    ),
    _choice(
        name=f"{PREFIX}sd",
        type="voice",
        prompt="Listen to the speech. Is all of it real, or is some of it artificial?"
        + _A_OR_B.format(a="all real", b="fake in any part"),
        parse=partial(read_choice, aliases=_REAL),
        options=("real", "fake"),
    ),
    _choice(
        name=f"{PREFIX}asc",
        type="sound",
        prompt="Listen to the background sounds and identify the acoustic scene." + _LETTER,
        option="{letter}: {option}",
    ),
    _choice(
        name=f"{PREFIX}er",
        type="voice",
        prompt="Listen to the voice for the speaker's emotion, and answer the question." + _LETTER,
        option="{letter}) {option}",
        max_new_tokens=10,
    ),
    _choice(
        name=f"{PREFIX}sgr",
        type="voice",
        prompt="Listen to the speaker. Is it a male voice or a female voice?"
        + _A_OR_B.format(a="a male voice", b="a female voice"),
        parse=partial(read_choice, aliases=_GENDER),
        options=("male", "female"),
    ),
    _choice(
        name=f"{PREFIX}sar",
        type="voice",
        prompt="Listen to the voice for the speaker's age, and answer the question." + _LETTER,
        parse=read_option,  # the classes are age groups, which files may list in any order
        option="{letter}) {option}",
    ),
)
"""In the order of the evaluation page's table."""
