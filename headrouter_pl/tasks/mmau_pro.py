"""The categories of MMAU-Pro (arXiv 2508.13992).

The authors match answers to options by embeddings (NV-Embed-v2), and let a language model judge open answers. Here both
are matched as strings; what they check by patterns, whether instructions were followed, is checked in the same way.
"""

from __future__ import annotations

from headrouter_pl.tasks.base import Task
from headrouter_pl.tasks.metrics import AnswerAccuracy, InstructionFollowing, StringMatch
from headrouter_pl.tasks.parsers import read_answer, read_choice, read_text

PREFIX = "mmau-pro-"
OPEN = f"{PREFIX}open"
INSTRUCTIONS = f"{PREFIX}instruction-following"

_TYPES = {
    "speech": "semantic",
    "sound": "sound",
    "music": "sound",
    "sound_music": "sound",
    "sound_speech": "semantic",
    "music_speech": "semantic",
    "sound_music_speech": "semantic",
    "spatial_audio": "sound",
    "voice_chat": "semantic",
    "multi": "sound",
}
_CHOICE = "{question}\n{options}\n\nAnswer with the letter of the correct option only ({letters})."

MMAU_PRO = (
    *(
        Task(f"{PREFIX}{category.replace('_', '-')}", kind, _CHOICE, read_choice, AnswerAccuracy, 16)
        for category, kind in _TYPES.items()
    ),
    Task(OPEN, "semantic", "{question}", read_answer, StringMatch, 256),
    Task(INSTRUCTIONS, "semantic", "{question}", read_text, InstructionFollowing, 512),
)
"""Speech anywhere in the audio makes a category semantic; which type each is of is ours to say, not the authors'."""
