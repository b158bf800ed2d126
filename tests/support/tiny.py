"""Tiny random audio language models, one per family, with batches shaped as their processors shape them.

Nothing is downloaded and every transformers class is looked up lazily: a family whose class the installed
transformers lacks is listed, and ``available`` says False for it.

    model = tiny.build("qwen2_audio")
    batch = tiny.inputs("qwen2_audio", model, [[20], [9, 14]])
    logits = tiny.core("qwen2_audio", model)(**batch).logits

Conventions: vocabulary of 128, pad id 0, text ids in [8, 96), special ids from 96 on. The output rows of all
ids outside the text range are zero, so greedy decoding never yields a pad or a placeholder. No
end-of-sequence id is set, so ``generate`` runs to ``max_new_tokens``.

A clip length is the number of audio tokens wanted: where a family's encoder can yield exactly that number it
does (``Family.fixed_tokens`` is None), else a clip takes the next multiple of ``Family.fixed_tokens`` (its
windows are fixed) and the length only sets how much of them is sound. The clips of a row are separated by
``text_between`` text tokens; where the processor puts a start and an end id around a clip (``Family.wrap``),
those come on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

VOCAB = 128
PAD = 0
TEXT_LOW, TEXT_HIGH = 8, 96
AUDIO_ID = 120
HIDDEN = 48
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 12
MELS = 8
WINDOW_TOKENS = 64  # audio tokens in one full window of the families with a fixed encoder window

Clips = Sequence[Sequence[int]]
# tokens of each clip of each row, and the audio tensors
Audio = tuple[list[list[int]], dict[str, Tensor]]
AudioBuilder = Callable[[Any, Clips, torch.Generator], Audio]  # model, clips, generator
ItemTokens = Callable[[Any, dict[str, Tensor]], list[int]]  # model, batch


@dataclass(frozen=True)
class Family:
    """What the tests need to know of one model family."""

    name: str
    cls: str  # name of the top class in transformers
    config: Callable[[int], Any]  # number of decoder layers -> configuration
    audio: AudioBuilder
    layers: str = "model.language_model.layers"  # path of the decoder layers from the top class
    core: str = ""  # path of the module whose forward and generate do the work; "" is the top class
    audio_id: str = "audio_token_id"  # path, in the core's config, of the placeholder id
    item_keys: tuple[str, ...] = ()  # audio tensors whose first dimension counts items (clips or windows)
    item_tokens: ItemTokens | None = None  # audio tokens of each item, in order
    multi_clip: bool = True
    fixed_tokens: int | None = None  # a clip takes a whole multiple of this many tokens
    wrap: tuple[int, int] | None = None  # ids the processor puts before and after each clip
    max_tokens: int | None = None  # longest clip
    attn: tuple[str, ...] = ("sdpa", "eager")
    eager_parts: tuple[str, ...] = ()  # sub-configurations that know no attention implementation but eager
    static_cache: bool = True  # generate(cache_implementation="static") works
    generate_ok: bool = True
    padding_ok: bool = True  # a left-padded batch gives each row its own single-row outputs
    min_prune_layer: int = 1  # smallest K that can be pruned from
    min_layers: int = 2
    modality_ids: bool = False  # the processor also yields mm_token_type_ids [B, L], 3 at audio
    finish: Callable[[Any], None] | None = None  # last touches on a built model
    notes: str = ""


def _cls(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _walk(obj: Any, path: str) -> Any:
    for part in filter(None, path.split(".")):
        obj = getattr(obj, part)
    return obj


def available(name: str) -> bool:
    """Whether the installed transformers has this family's class."""
    import transformers

    return name in FAMILIES and hasattr(transformers, FAMILIES[name].cls)


def core(name: str, model: nn.Module) -> Any:
    """The module whose ``forward`` and ``generate`` take the batch (the thinker of a full Omni model)."""
    return _walk(model, FAMILIES[name].core)


def layers(name: str, model: nn.Module) -> Any:
    """The decoder layers."""
    path = FAMILIES[name].layers
    try:
        return _walk(model, path)
    except AttributeError:  # older transformers: the Omni thinkers have no module between
        return _walk(model, path.replace(".language_model", ""))


def audio_token_id(name: str, model: nn.Module) -> int:
    return int(_walk(core(name, model).config, FAMILIES[name].audio_id))


def audio_mask(name: str, model: nn.Module, input_ids: Tensor) -> Tensor:
    """``[B, L]`` bool: True at the audio placeholders."""
    return input_ids == audio_token_id(name, model)


# ----------------------------------------------------------------------------------------- weights


# Sharp attention, so that a masked key shows, and strong MLPs, so that greedy decoding varies its tokens.
_GAINS = {
    "q_proj": 1.2,
    "k_proj": 1.2,
    "qkv_proj": 1.2,
    "v_proj": 1.5,
    "o_proj": 1.5,
    "gate_proj": 1.6,
    "up_proj": 1.6,
    "gate_up_proj": 1.6,
    "down_proj": 1.6,
}


def _randomise(model: nn.Module, seed: int) -> None:
    """Weights under which attention matters: unit-scale activations, scores with a spread of a few units."""
    gen = torch.Generator().manual_seed(seed)

    def fill(param: Tensor, std: float, mean: float = 0.0) -> None:
        param.copy_(torch.randn(param.shape, generator=gen) * std + mean)

    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} & embeddings
    seen: set[int] = set()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if id(param) in seen:
                continue
            seen.add(id(param))
            parts = name.split(".")[-2:]
            fan_in = param.shape[-1] if param.ndim == 2 or "experts" in parts else max(1, param[0].numel())
            if "correct_output_scale" in name:  # zero-initialised: would switch the per-layer inputs off
                fill(param, 0.1, 1.0)
            elif param.ndim == 1:
                if name.endswith("bias"):
                    fill(param, 0.1)
            elif id(param) in embeddings:
                fill(param, fan_in**-0.5 if id(param) in tied else 1.0)
            else:
                gain = next((g for part, g in _GAINS.items() if part in parts), 1.0)
                fill(param, gain * fan_in**-0.5)
        modules: list[Any] = list(model.modules())
        for module in modules:
            head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
            if isinstance(head, nn.Linear) and head.weight.shape[0] >= TEXT_HIGH:
                head.weight[:TEXT_LOW] = 0.0
                head.weight[TEXT_HIGH:] = 0.0


def build(
    name: str,
    *,
    num_layers: int = 4,
    attn_implementation: str = "sdpa",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A tiny random model of the family in eval mode; the same for the same arguments."""
    family = FAMILIES[name]
    num_layers = max(num_layers, family.min_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cls = _cls(family.cls)
        attn: Any = attn_implementation
        if family.eager_parts:
            attn = {"": attn, "text_config": attn, **dict.fromkeys(family.eager_parts, "eager")}
        model = cls._from_config(family.config(num_layers), attn_implementation=attn)
    _randomise(model, seed)
    model = model.to(dtype).eval()
    for part in {id(m): m for m in (model, core(name, model))}.values():
        generation = getattr(part, "generation_config", None)
        if generation is not None:
            generation.eos_token_id = None
            generation.bos_token_id = None
            generation.pad_token_id = PAD
            generation.do_sample = False
    if family.finish is not None:
        family.finish(model)
    return model


# ------------------------------------------------------------------------------------------ inputs


def inputs(
    name: str,
    model: Any,
    clips: Clips,
    *,
    padding_side: str | None = "left",
    text_before: int = 3,
    text_after: int = 6,
    text_between: int = 2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A batch of forward arguments: row ``b`` holds a text, the clips ``clips[b]`` and a text.

    Every row gets its own text. ``padding_side=None`` demands rows of equal length.
    """
    family = FAMILIES[name]
    if not family.multi_clip and any(len(row) > 1 for row in clips):
        raise ValueError(f"{name} takes one clip a row")
    gen = torch.Generator().manual_seed(seed + 1)
    counts: list[list[int]] = [[] for _ in clips]
    audio: dict[str, Tensor] = {}
    if any(map(len, clips)):
        counts, audio = family.audio(core(name, model), clips, gen)
    placeholder = audio_token_id(name, model)

    def text(n: int) -> list[int]:
        return [int(i) for i in torch.randint(TEXT_LOW, TEXT_HIGH, (n,), generator=gen)]

    opening, closing = ([family.wrap[0]], [family.wrap[1]]) if family.wrap else ([], [])

    rows: list[list[int]] = []
    for row in counts:
        ids = text(text_before)
        for i, n in enumerate(row):
            ids += (text(text_between) if i else []) + opening + [placeholder] * n + closing
        rows.append(ids + text(text_after))
    width = max(map(len, rows))
    if padding_side is None and min(map(len, rows)) != width:
        raise ValueError("rows of different lengths need a padding side")
    input_ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for b, ids in enumerate(rows):
        start = width - len(ids) if padding_side == "left" else 0
        input_ids[b, start : start + len(ids)] = torch.tensor(ids)
        mask[b, start : start + len(ids)] = 1
    dtype = next(model.parameters()).dtype
    audio = {k: v.to(dtype) if v.is_floating_point() else v for k, v in audio.items()}
    if family.modality_ids:
        audio["mm_token_type_ids"] = (input_ids == placeholder).long() * 3
    return {"input_ids": input_ids, "attention_mask": mask, **audio}


def single(name: str, model: Any, batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """Row ``row`` of a batch on its own, without its padding, and with the same audio."""
    family = FAMILIES[name]
    keep = batch["attention_mask"][row].bool()
    by_token = [k for k in ("input_ids", "attention_mask", "mm_token_type_ids") if k in batch]
    out: dict[str, Tensor] = {k: batch[k][row : row + 1, keep] for k in by_token}
    if family.item_tokens is None:
        raise ValueError(f"{name} cannot be split into rows")
    tokens = family.item_tokens(core(name, model), batch)
    totals = audio_mask(name, model, batch["input_ids"]).sum(1).tolist()
    first = 0
    for total in totals[:row]:
        first = _advance(tokens, first, total)
    last = _advance(tokens, first, totals[row])
    for key, value in batch.items():
        if key not in out:
            out[key] = value[first:last] if key in family.item_keys else value[row : row + 1]
    return out


def _advance(tokens: list[int], item: int, total: int) -> int:
    while total > 0:
        total -= tokens[item]
        item += 1
    if total:
        raise ValueError("items and placeholders do not match")
    return item


def _features(lengths: Sequence[int], mels: int, width: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random ``[items, mels, width]`` features, zero after each length, and their mask."""
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    return torch.randn(len(lengths), mels, width, generator=gen) * mask[:, None], mask


def _flat(clips: Clips) -> list[int]:
    return [int(n) for row in clips for n in row]


def _nested(clips: Clips, counts: Sequence[int]) -> list[list[int]]:
    it = iter(counts)
    return [[int(next(it)) for _ in row] for row in clips]


def _text(cls: str, num_layers: int, **extra: Any) -> Any:
    kwargs: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    return _cls(cls)(**{**kwargs, **extra})


# --------------------------------------------------------------------------- Whisper-like encoders


def _stride4(frames: int) -> int:
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def _whisper(cls: str, **extra: Any) -> Any:
    kwargs: dict[str, Any] = {
        "num_mel_bins": MELS,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 32,
        "max_source_positions": 2 * WINDOW_TOKENS,
    }
    return _cls(cls)(**{**kwargs, **extra})


def _padded_mel(
    mask_key: str, *, windows: bool, step: int = 4, window: int = WINDOW_TOKENS, mels: int = MELS
) -> AudioBuilder:
    """Mel features, ``step`` frames a token, padded to a window; ``windows``: long clips take several."""

    def make(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
        flat = _flat(clips)
        if not windows and max(flat) > window:
            raise ValueError(f"a clip holds at most {window} tokens")
        items = [min(window, n - start) for n in flat for start in range(0, n, window)]
        features, mask = _features([step * n for n in items], mels, step * window, gen)
        return _nested(clips, flat), {"input_features": features, mask_key: mask}

    return make


def _mask_tokens(mask_key: str) -> ItemTokens:
    return lambda model, batch: [_stride4(int(n)) for n in batch[mask_key].sum(-1)]


def _qwen2_audio(num_layers: int) -> Any:
    return _cls("Qwen2AudioConfig")(
        audio_config=_whisper("Qwen2AudioEncoderConfig"),
        text_config=_text("Qwen2Config", num_layers),
        audio_token_index=AUDIO_ID,
    )


def _flamingo_encoder() -> Any:
    return _cls("AudioFlamingo3EncoderConfig")(
        num_mel_bins=MELS,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_size=32,
        max_source_positions=2 * WINDOW_TOKENS,
    )


def _audioflamingo3(num_layers: int) -> Any:
    return _cls("AudioFlamingo3Config")(
        audio_config=_flamingo_encoder(),
        text_config=_text("Qwen2Config", num_layers),
        audio_token_id=AUDIO_ID,
    )


def _musicflamingo(num_layers: int) -> Any:
    return _cls("MusicFlamingoConfig")(
        audio_config=_flamingo_encoder(),
        text_config=_text("Qwen2Config", num_layers),
        audio_token_id=AUDIO_ID,
        audio_bos_token_id=123,
        audio_eos_token_id=124,
    )


# ------------------------------------------------------------------------------ Voxtral and GlmAsr

VOXTRAL_TOKENS = 12  # audio tokens of one window
GLM_TOKENS = 32


def _voxtral(num_layers: int) -> Any:
    encoder = _cls("VoxtralEncoderConfig")(
        num_mel_bins=MELS,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_source_positions=4 * VOXTRAL_TOKENS,
    )
    return _cls("VoxtralConfig")(
        audio_config=encoder,
        text_config=_text("LlamaConfig", num_layers, head_dim=HEAD_DIM),
        audio_token_id=AUDIO_ID,
    )


def _voxtral_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    flat = _flat(clips)
    width = VOXTRAL_TOKENS
    items = [min(width, n - start) for n in flat for start in range(0, n, width)]
    features, _ = _features([8 * n for n in items], MELS, 8 * width, gen)
    return _nested(clips, [width * math.ceil(n / width) for n in flat]), {"input_features": features}


def _glmasr(num_layers: int) -> Any:
    encoder = _cls("GlmAsrEncoderConfig")(
        num_mel_bins=MELS, hidden_size=32, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2
    )
    return _cls("GlmAsrConfig")(
        audio_config=encoder,
        text_config=_text("LlamaConfig", num_layers, head_dim=HEAD_DIM),
        audio_token_id=AUDIO_ID,
        tie_word_embeddings=False,
    )


# ---------------------------------------------------------------------------------- Granite Speech


def _granite_text(num_layers: int) -> Any:
    return _text(
        "GraniteConfig",
        num_layers,
        embedding_multiplier=2.0,
        logits_scaling=2.0,
        residual_multiplier=0.7,
        attention_multiplier=HEAD_DIM**-0.5,
    )


def _granite_config(prefix: str, num_layers: int, encoder_width: int, **encoder: Any) -> Any:
    return _cls(f"{prefix}Config")(
        text_config=_granite_text(num_layers),
        encoder_config=_cls(f"{prefix}EncoderConfig")(
            input_dim=16,
            num_layers=2,
            hidden_dim=32,
            feedforward_mult=1,
            num_heads=2,
            output_dim=8,
            context_size=24,
            max_pos_emb=32,
            dropout=0.0,
            conv_kernel_size=5,
            **encoder,
        ),
        projector_config=_cls("Blip2QFormerConfig")(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            encoder_hidden_size=encoder_width,
        ),
        audio_token_index=AUDIO_ID,
        has_lora_adapter=False,
        downsample_rate=3,
        window_size=3,
        tie_word_embeddings=False,
    )


def _granite(num_layers: int) -> Any:
    return _granite_config("GraniteSpeech", num_layers, 32)


def _granite_plus(num_layers: int) -> Any:
    return _granite_config("GraniteSpeechPlus", num_layers, 64, cat_hidden_layers=[0])


def _granite_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    flat = _flat(clips)
    features, _ = _features([3 * n for n in flat], 16, 3 * max(flat), gen)
    mask = torch.arange(max(flat))[None] < torch.tensor(flat)[:, None]
    return _nested(clips, flat), {
        "input_features": features.transpose(1, 2).contiguous(),
        "input_features_mask": mask,
    }


# -------------------------------------------------------- Fun-ASR-Nano and MOSS-Transcribe-Diarize

MOSS_TOKENS = 32


def _fun_asr(num_layers: int) -> Any:
    encoder = _cls("FunAsrNanoEncoderConfig")(
        num_mel_bins=MELS,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=32,
        num_hidden_layers=3,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        max_position_embeddings=257,
        num_stacked_frames=2,
        num_timestamp_prediction_layers=1,
        fsmn_kernel_size=3,
    )
    adaptor = {
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "intermediate_size": HIDDEN // 4,
        "num_hidden_layers": 1,
        "projector_hidden_size": 32,
    }
    return _cls("FunAsrNanoConfig")(
        adaptor_config=adaptor,
        audio_config=encoder,
        text_config=_text("Qwen3Config", num_layers, head_dim=HEAD_DIM),
        audio_token_id=AUDIO_ID,
        tie_word_embeddings=False,
    )


def _fun_asr_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    flat = _flat(clips)
    features, mask = _features(flat, model.config.audio_config.input_size, max(flat), gen)
    return _nested(clips, flat), {
        "input_features": features.transpose(1, 2).contiguous(),
        "input_features_mask": mask,
    }


def _moss(num_layers: int) -> Any:
    encoder = _cls("MossTranscribeDiarizeAudioConfig")(
        num_mel_bins=MELS,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_size=32,
        max_source_positions=4 * MOSS_TOKENS,
    )
    return _cls("MossTranscribeDiarizeConfig")(
        audio_config=encoder,
        text_config=_text("Qwen3Config", num_layers, head_dim=HEAD_DIM),
        audio_token_id=AUDIO_ID,
        audio_merge_size=4,
        audio_chunk_size=8 * MOSS_TOKENS,
        tie_word_embeddings=False,
    )


def _moss_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    counts, audio = _padded_mel("input_features_mask", windows=False, step=8, window=MOSS_TOKENS)(model, clips, gen)
    return counts, {**audio, "padding_mask": audio["input_features_mask"]}


# -------------------------------------------------------------------- Qwen3-ASR and Qwen3-Omni-MoE

CHUNK_FRAMES, CHUNK_TOKENS = 100, 13


def _chunk_frames(tokens: int) -> int:
    return tokens // CHUNK_TOKENS * CHUNK_FRAMES + tokens % CHUNK_TOKENS * 8


def _chunk_tokens(mask_key: str) -> ItemTokens:
    def count(model: Any, batch: dict[str, Tensor]) -> list[int]:
        frames = batch[mask_key].sum(-1).tolist()
        return [n // CHUNK_FRAMES * CHUNK_TOKENS + math.ceil(n % CHUNK_FRAMES / 8) for n in frames]

    return count


def _chunk_mel(mask_key: str) -> AudioBuilder:
    """Mel features in chunks of 100 frames, which yield 13 tokens each."""

    def make(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
        flat = _flat(clips)
        frames = [_chunk_frames(n) for n in flat]
        width = math.ceil(max(frames) / CHUNK_FRAMES) * CHUNK_FRAMES
        features, mask = _features(frames, MELS, width, gen)
        return _nested(clips, flat), {"input_features": features, mask_key: mask}

    return make


def _qwen3_asr(num_layers: int) -> Any:
    encoder = _cls("Qwen3ASREncoderConfig")(
        num_mel_bins=MELS,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        d_model=32,
        n_window_infer=200,
        output_dim=HIDDEN,
        downsample_hidden_size=4,
    )
    return _cls("Qwen3ASRConfig")(
        audio_config=encoder,
        text_config=_text("Qwen3Config", num_layers, head_dim=HEAD_DIM),
        audio_token_id=AUDIO_ID,
        timestamp_token_id=121,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )


def _qwen3_omni_thinker(num_layers: int) -> Any:
    audio = _whisper(
        "Qwen3OmniMoeAudioEncoderConfig",
        max_source_positions=64,
        n_window_infer=200,
        output_dim=HIDDEN,
        downsample_hidden_size=4,
    )
    vision = _cls("Qwen3OmniMoeVisionEncoderConfig")(
        depth=2,
        hidden_size=32,
        intermediate_size=32,
        num_heads=2,
        out_hidden_size=HIDDEN,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0],
    )
    text = _text(
        "Qwen3OmniMoeTextConfig",
        num_layers,
        head_dim=HEAD_DIM,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 2, 2],
            "mrope_interleaved": True,
        },
    )
    return _cls("Qwen3OmniMoeThinkerConfig")(
        audio_config=audio,
        vision_config=vision,
        text_config=text,
        audio_token_id=AUDIO_ID,
        image_token_id=121,
        video_token_id=122,
        audio_start_token_id=123,
        audio_end_token_id=124,
        vision_start_token_id=125,
        vision_end_token_id=126,
        pad_token_id=PAD,
    )


# ----------------------------------------------------------------------------------- VibeVoice ASR


def _vibevoice(num_layers: int) -> Any:
    def encoder(hidden: int) -> Any:
        return _cls("VibeVoiceAcousticTokenizerEncoderConfig")(
            hidden_size=hidden,
            kernel_size=5,
            layer_scale_init_value=0.5,
            num_filters=4,
            downsampling_ratios=[2, 4],
            depths=[1, 1, 1],
            ffn_expansion=2,
            vae_std=0.0,  # no sampling noise
        )

    return _cls("VibeVoiceAsrConfig")(
        acoustic_tokenizer_encoder_config=encoder(8),
        semantic_tokenizer_encoder_config=encoder(12),
        text_config=_text("Qwen2Config", num_layers),
        audio_token_id=AUDIO_ID,
        audio_bos_token_id=123,
        audio_eos_token_id=124,
        acoustic_tokenizer_chunk_size=80,
    )


def _vibevoice_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    flat = _flat(clips)
    hop = model.config.acoustic_tokenizer_encoder_config.hop_length
    values, mask = _features([hop * n - 1 for n in flat], 1, hop * max(flat), gen)
    return _nested(clips, flat), {"input_values": values, "padding_mask": mask.bool()}


# ------------------------------------------------------------------------------------ Qwen2.5-Omni


def _qwen2_5_omni_thinker(num_layers: int) -> Any:
    audio = _whisper("Qwen2_5OmniAudioEncoderConfig", n_window=8, output_dim=HIDDEN, max_source_positions=256)
    vision = _cls("Qwen2_5OmniVisionEncoderConfig")(
        depth=1,
        hidden_size=32,
        intermediate_size=32,
        num_heads=2,
        out_hidden_size=HIDDEN,
        fullatt_block_indexes=[0],
    )
    text = _text(
        "Qwen2_5OmniTextConfig",
        num_layers,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
    )
    return _cls("Qwen2_5OmniThinkerConfig")(
        audio_config=audio,
        vision_config=vision,
        text_config=text,
        audio_token_index=AUDIO_ID,
        image_token_index=121,
        video_token_index=122,
        audio_start_token_id=123,
        audio_end_token_id=124,
        vision_start_token_id=125,
        vision_end_token_id=126,
        pad_token_id=PAD,
    )


def _qwen2_5_omni(num_layers: int) -> Any:
    return _cls("Qwen2_5OmniConfig")(
        thinker_config=_qwen2_5_omni_thinker(num_layers).to_dict(), enable_audio_output=False
    )


def _omni_finish(model: Any) -> None:
    # Its generate looks a speaker up, and reads the talker's pad token, even for text alone.
    model.speaker_map["Chelsie"] = {}
    model.talker = SimpleNamespace(codec_pad_token=0)


def _omni_mel(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    flat = _flat(clips)
    features, mask = _features([4 * n for n in flat], MELS, 4 * max(flat), gen)
    return _nested(clips, flat), {"input_features": features, "feature_attention_mask": mask}


# --------------------------------------------------------------------------------- Phi4 multimodal


def _phi4(num_layers: int) -> Any:
    audio = _cls("Phi4MultimodalAudioConfig")(
        hidden_size=32,
        intermediate_size=32,
        num_blocks=1,
        num_attention_heads=2,
        ext_pw_out_channel=32,
        depthwise_separable_out_channel=32,
        input_size=16,
        time_reduction=4,
        bias_max_distance=64,
        nemo_conv_channels=8,
        audio_token_id=AUDIO_ID,
    )
    vision = _cls("Phi4MultimodalVisionConfig")(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        crop_size=28,
        image_token_id=121,
    )
    return _text(
        "Phi4MultimodalConfig",
        num_layers,
        hidden_size=64,
        audio_config=audio,
        vision_config=vision,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
        original_max_position_embeddings=4096,
    )


def _phi4_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    config = model.config.audio_config
    flat = _flat(clips)
    step = config.time_reduction
    features, mask = _features([step * n for n in flat], config.input_size, step * max(flat), gen)
    out = {
        "audio_input_features": features.transpose(1, 2).contiguous(),
        "audio_embed_sizes": torch.tensor(flat),
    }
    if len(flat) > 1:
        out["audio_attention_mask"] = mask.bool()
    return _nested(clips, flat), out


# ----------------------------------------------------------------------------------------- Gemma3n

GEMMA_TOKENS = 12


def _gemma_layer_types(num_layers: int) -> list[str]:
    return ["full_attention" if i % 2 == 0 else "sliding_attention" for i in range(num_layers)]


def _gemma3n(num_layers: int) -> Any:
    text = _text(
        "Gemma3nTextConfig",
        num_layers,
        head_dim=HEAD_DIM,
        sliding_window=10,
        layer_types=_gemma_layer_types(num_layers),
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=104,
        altup_num_inputs=3,
        laurel_rank=8,
        tie_word_embeddings=True,
    )
    audio = _cls("Gemma3nAudioConfig")(
        vocab_size=16,
        vocab_offset=112,
        input_feat_size=16,
        hidden_size=32,
        conf_attention_chunk_size=4,
        conf_attention_context_left=5,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        sscp_conv_channel_size=(8, 4),
    )
    # The real vision tower needs timm; a one-layer SigLIP encoder stands in for it and is never run.
    vision = _cls("SiglipVisionConfig")(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    vision.vocab_size, vision.vocab_offset, vision.rms_norm_eps = 8, 104, 1e-6
    config = _cls("Gemma3nConfig")(
        text_config=text,
        audio_config=audio,
        audio_soft_tokens_per_image=GEMMA_TOKENS,
        vision_soft_tokens_per_image=4,
        image_token_id=105,
        boi_token_id=100,
        eoi_token_id=104,
        boa_token_id=101,
        audio_token_id=AUDIO_ID,
        eoa_token_id=112,
    )
    vars(config)["vision_config"] = vision  # past the type check
    return config


def _gemma_finish(model: Any) -> None:
    # Scores are not divided by sqrt(head_dim): unscaled they are so sharp that rounding noise grows. The
    # norms after attention and MLP fix their shares: more from the MLP makes greedy decoding vary its tokens.
    for module in model.modules():
        for name, scale in (
            ("q_norm", 0.4),
            ("post_attention_layernorm", 0.6),
            ("post_feedforward_layernorm", 2.0),
        ):
            if isinstance(getattr(module, name, None), nn.Module):
                getattr(module, name).weight.data.fill_(scale)


def _gemma3n_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    flat = [min(n, GEMMA_TOKENS) for n in _flat(clips)]
    features, mask = _features([16 * n for n in flat], 16, 16 * GEMMA_TOKENS, gen)
    counts = _nested(clips, [GEMMA_TOKENS] * len(flat))
    return counts, {
        "input_features": features.transpose(1, 2).contiguous(),
        "input_features_mask": mask.bool(),
    }


def _gemma4_text(num_layers: int, cls: str, **extra: Any) -> Any:
    types = _gemma_layer_types(num_layers)
    types[-2:] = ["sliding_attention", "full_attention"]
    return _text(
        cls,
        num_layers,
        head_dim=HEAD_DIM,
        global_head_dim=16,
        sliding_window=10,
        layer_types=types,
        num_kv_shared_layers=2,
        tie_word_embeddings=True,
        **extra,
    )


def _gemma4(num_layers: int) -> Any:
    audio = _cls("Gemma4AudioConfig")(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        subsampling_conv_channels=[16, 4],
        attention_chunk_size=4,
        attention_context_left=5,
        output_proj_dims=32,
    )
    text = _gemma4_text(num_layers, "Gemma4TextConfig", hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB)
    config = _cls("Gemma4Config")(text_config=text, audio_config=audio, **_GEMMA4_IDS)
    config.vision_config = None
    return config


_GEMMA4_IDS = {
    "boi_token_id": 100,
    "eoi_token_id": 104,
    "image_token_id": 105,
    "video_token_id": 106,
    "boa_token_id": 101,
    "eoa_token_index": 112,
    "audio_token_id": AUDIO_ID,
}


def _gemma4_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    flat = _flat(clips)
    features, mask = _features([4 * n for n in flat], 16, 4 * max(flat), gen)
    return _nested(clips, flat), {
        "input_features": features.transpose(1, 2).contiguous(),
        "input_features_mask": mask.bool(),
    }


def _gemma4_unified(num_layers: int) -> Any:
    config = _cls("Gemma4UnifiedConfig")(
        text_config=_gemma4_text(num_layers, "Gemma4UnifiedTextConfig"),
        audio_config=_cls("Gemma4UnifiedAudioConfig")(audio_embed_dim=16),
        **_GEMMA4_IDS,
    )
    config.vision_config = None
    return config


def _gemma4_unified_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    flat = _flat(clips)
    features, mask = _features(flat, 16, max(flat), gen)
    return _nested(clips, flat), {
        "input_features": features.transpose(1, 2).contiguous(),
        "input_features_mask": mask.bool(),
    }


# -------------------------------------------------------------------------------------- Muse Spark


def _muse_spark(num_layers: int) -> Any:
    text = _text(
        "MuseSparkTextConfig",
        num_layers,
        head_dim=HEAD_DIM,
        sliding_window=10,
        layer_types=["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(num_layers)],
        layer_rope_theta=[10000.0 if i % 2 == 0 else 0 for i in range(num_layers)],
        qk_scale_factor=2.0,
        output_multiplier=1.0,
        moe_intermediate_size=24,
        num_local_experts=4,
        num_experts_per_tok=2,
        moe_hidden_size=32,
        mlp_layer_types=["dense"] + ["sparse"] * (num_layers - 1),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    vision = _cls("MuseSparkVisionConfig")(
        num_attention_heads=2,
        num_hidden_layers=1,
        hidden_size=32,
        intermediate_size=32,
        pos_emb_height=4,
        pos_emb_width=4,
        max_position_embeddings=16,
    )
    audio = _cls("MuseSparkAudioConfig")(
        patch_sizes=[4, 2],
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_hidden_layers=2,
        mlp_ratio=2.0,
        conv_kernel_size=3,
        out_hidden_size=HIDDEN,
    )
    return _cls("MuseSparkConfig")(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        image_token_id=121,
        video_token_id=122,
        audio_token_id=AUDIO_ID,
        out_hidden_size=128,
        projector_hidden_size=32,
    )


def _muse_spark_audio(model: Any, clips: Clips, gen: torch.Generator) -> Audio:
    flat = _flat(clips)
    hop = model.config.audio_config.samples_per_token
    values, mask = _features([hop * n - 1 for n in flat], 1, hop * max(flat), gen)
    return _nested(clips, flat), {"input_values": values[:, 0], "input_values_mask": mask}


_MEL_KEYS = ("input_features", "input_features_mask", "feature_attention_mask")

FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family(
            name="qwen2_audio",
            cls="Qwen2AudioForConditionalGeneration",
            config=_qwen2_audio,
            audio=_padded_mel("feature_attention_mask", windows=False),
            item_keys=_MEL_KEYS,
            item_tokens=_mask_tokens("feature_attention_mask"),
            max_tokens=WINDOW_TOKENS,
            audio_id="audio_token_index",
            notes="a prompt in which no two placeholders are neighbours is expanded inside forward (legacy)",
        ),
        Family(
            name="qwen2_5_omni_thinker",
            cls="Qwen2_5OmniThinkerForConditionalGeneration",
            config=_qwen2_5_omni_thinker,
            audio=_omni_mel,
            item_keys=_MEL_KEYS,
            item_tokens=_mask_tokens("feature_attention_mask"),
            audio_id="audio_token_index",
            wrap=(123, 124),
            notes="mrope; a cached step written by hand needs position_ids",
        ),
        Family(
            name="qwen2_5_omni",
            cls="Qwen2_5OmniForConditionalGeneration",
            config=_qwen2_5_omni,
            audio=_omni_mel,
            layers="thinker.model.language_model.layers",
            core="thinker",
            item_keys=_MEL_KEYS,
            item_tokens=_mask_tokens("feature_attention_mask"),
            audio_id="audio_token_index",
            wrap=(123, 124),
            finish=_omni_finish,
            notes="no forward of its own; generate(generation_mode='text', thinker_max_new_tokens=n) works",
        ),
        Family(
            name="audioflamingo3",
            cls="AudioFlamingo3ForConditionalGeneration",
            config=_audioflamingo3,
            audio=_padded_mel("input_features_mask", windows=True),
            item_keys=_MEL_KEYS,
            item_tokens=_mask_tokens("input_features_mask"),
            notes="clips above 64 tokens take several encoder windows",
        ),
        Family(
            name="musicflamingo",
            cls="MusicFlamingoForConditionalGeneration",
            config=_musicflamingo,
            audio=_padded_mel("input_features_mask", windows=True),
            item_keys=_MEL_KEYS,
            item_tokens=_mask_tokens("input_features_mask"),
            wrap=(123, 124),
            notes="time embedding reads the runs of placeholders in input_ids: clips need text between them",
        ),
        Family(
            name="voxtral",
            cls="VoxtralForConditionalGeneration",
            config=_voxtral,
            audio=_voxtral_audio,
            item_keys=_MEL_KEYS,
            item_tokens=lambda model, batch: [VOXTRAL_TOKENS] * len(batch["input_features"]),
            fixed_tokens=VOXTRAL_TOKENS,
        ),
        Family(
            name="glmasr",
            cls="GlmAsrForConditionalGeneration",
            config=_glmasr,
            audio=_padded_mel("input_features_mask", windows=True, step=8, window=GLM_TOKENS),
            item_keys=_MEL_KEYS,
            item_tokens=lambda model, batch: (batch["input_features_mask"].sum(-1) // 8).tolist(),
            notes="clips above 32 tokens take several encoder windows; the encoder does not mask its padding",
        ),
        Family(
            name="granite_speech",
            cls="GraniteSpeechForConditionalGeneration",
            config=_granite,
            audio=_granite_audio,
            audio_id="audio_token_index",
            item_keys=_MEL_KEYS,
            item_tokens=lambda model, batch: batch["input_features_mask"].sum(-1).tolist(),
            notes="embeds a copy of input_ids without placeholders; the encoder does not mask its padding",
        ),
        Family(
            name="phi4_multimodal",
            cls="Phi4MultimodalForCausalLM",
            config=_phi4,
            audio=_phi4_audio,
            layers="model.layers",
            audio_id="audio_config.audio_token_id",
            item_keys=("audio_input_features", "audio_embed_sizes", "audio_attention_mask"),
            item_tokens=lambda model, batch: batch["audio_embed_sizes"].tolist(),
            notes="fused qkv_proj, partial rotary; the encoder adds its mask as 0/1, so padding leaks in",
        ),
        Family(
            name="gemma3n",
            cls="Gemma3nForConditionalGeneration",
            config=_gemma3n,
            audio=_gemma3n_audio,
            item_keys=_MEL_KEYS,
            item_tokens=lambda model, batch: [GEMMA_TOKENS] * len(batch["input_features"]),
            fixed_tokens=GEMMA_TOKENS,
            wrap=(101, 112),
            finish=_gemma_finish,
            max_tokens=GEMMA_TOKENS,
            min_prune_layer=2,
            min_layers=6,
            notes="hidden states [altup, B, L, d]; full and sliding (10) layers, the last two share KV",
        ),
        Family(
            name="qwen3_omni_moe_thinker",
            cls="Qwen3OmniMoeThinkerForConditionalGeneration",
            config=_qwen3_omni_thinker,
            audio=_chunk_mel("feature_attention_mask"),
            item_keys=_MEL_KEYS,
            item_tokens=_chunk_tokens("feature_attention_mask"),
            wrap=(123, 124),
            notes="as qwen2_5_omni_thinker, with mixture of experts, q_norm and k_norm",
        ),
        Family(
            name="qwen3_asr",
            cls="Qwen3ASRForConditionalGeneration",
            config=_qwen3_asr,
            audio=_chunk_mel("input_features_mask"),
            item_keys=_MEL_KEYS,
            item_tokens=_chunk_tokens("input_features_mask"),
            notes="q_norm and k_norm",
        ),
        Family(
            name="vibevoice_asr",
            cls="VibeVoiceAsrForConditionalGeneration",
            config=_vibevoice,
            audio=_vibevoice_audio,
            item_keys=("input_values", "padding_mask"),
            eager_parts=("acoustic_tokenizer_encoder_config", "semantic_tokenizer_encoder_config"),
            item_tokens=lambda model, batch: ((batch["padding_mask"].sum(-1) + 7) // 8).tolist(),
            wrap=(123, 124),
            notes="sampling noise switched off by vae_std=0",
        ),
        Family(
            name="granite_speech_plus",
            cls="GraniteSpeechPlusForConditionalGeneration",
            config=_granite_plus,
            audio=_granite_audio,
            audio_id="audio_token_index",
            item_keys=_MEL_KEYS,
            item_tokens=lambda model, batch: batch["input_features_mask"].sum(-1).tolist(),
            notes="as granite_speech",
        ),
        Family(
            name="fun_asr_nano",
            cls="FunAsrNanoForConditionalGeneration",
            config=_fun_asr,
            audio=_fun_asr_audio,
            item_keys=_MEL_KEYS,
            item_tokens=lambda model, batch: batch["input_features_mask"].sum(-1).tolist(),
            notes="q_norm and k_norm",
        ),
        Family(
            name="moss_transcribe_diarize",
            cls="MossTranscribeDiarizeForConditionalGeneration",
            config=_moss,
            audio=_moss_audio,
            item_keys=(*_MEL_KEYS, "padding_mask"),
            item_tokens=lambda model, batch: (batch["input_features_mask"].sum(-1) // 8).tolist(),
            max_tokens=MOSS_TOKENS,
            notes="q_norm and k_norm; forward takes position_ids only through its keyword arguments",
        ),
        Family(
            name="gemma4",
            cls="Gemma4ForConditionalGeneration",
            config=_gemma4,
            audio=_gemma4_audio,
            item_keys=_MEL_KEYS,
            item_tokens=lambda model, batch: (batch["input_features_mask"].sum(-1) // 4).tolist(),
            eager_parts=("audio_config",),
            wrap=(101, 112),
            modality_ids=True,
            min_prune_layer=2,
            min_layers=6,
            finish=_gemma_finish,
            notes="full (head size 16) and sliding (12, window 10) layers, the last two share KV and, with"
            " logits_to_keep, see only the last positions",
        ),
        Family(
            name="gemma4_unified",
            cls="Gemma4UnifiedForConditionalGeneration",
            config=_gemma4_unified,
            audio=_gemma4_unified_audio,
            item_keys=_MEL_KEYS,
            item_tokens=lambda model, batch: batch["input_features_mask"].sum(-1).tolist(),
            wrap=(101, 112),
            modality_ids=True,
            min_prune_layer=2,
            min_layers=6,
            finish=_gemma_finish,
            notes="as gemma4 without per-layer inputs; no audio encoder",
        ),
        Family(
            name="muse_spark",
            cls="MuseSparkForConditionalGeneration",
            config=_muse_spark,
            audio=_muse_spark_audio,
            item_keys=("input_values", "input_values_mask"),
            item_tokens=lambda model, batch: ((batch["input_values_mask"].sum(-1) + 7) // 8).tolist(),
            min_prune_layer=2,
            notes="sliding (10) layers with rotary, full ones without; one qk_norm runs on q, then on k",
        ),
    )
}
