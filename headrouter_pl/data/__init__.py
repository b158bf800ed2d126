"""Audio reading and data modules."""

from headrouter_pl.data.audio import AudioBytes, AudioError, read_audio
from headrouter_pl.data.audio_prompts import AudioPromptDataModule
from headrouter_pl.data.audiomarathon import AudioMarathonDataModule
from headrouter_pl.data.mmau_pro import MMAUProDataModule
from headrouter_pl.data.records import AudioPrompt, read_records
from headrouter_pl.data.sealed import is_sealed
from headrouter_pl.data.speech import demo_speech

__all__ = [
    "AudioBytes",
    "AudioError",
    "AudioMarathonDataModule",
    "AudioPrompt",
    "AudioPromptDataModule",
    "MMAUProDataModule",
    "demo_speech",
    "is_sealed",
    "read_audio",
    "read_records",
]
