"""Audio reading and data modules."""

from headrouter_pl.data.audio import AudioError, read_audio
from headrouter_pl.data.audio_prompts import AudioPrompt, AudioPromptDataModule, read_records
from headrouter_pl.data.sealed import is_sealed
from headrouter_pl.data.speech import demo_speech

__all__ = [
    "AudioError",
    "AudioPrompt",
    "AudioPromptDataModule",
    "demo_speech",
    "is_sealed",
    "read_audio",
    "read_records",
]
