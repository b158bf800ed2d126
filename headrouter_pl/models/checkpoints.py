"""Loading of models by name, and of adapters; saving of adapters and of merged models."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headrouter_pl import tensorfile
from headrouter_pl.digest import digest
from headrouter_pl.errors import ConfigurationError, HeadRouterError, unknown_name
from headrouter_pl.results import move

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, ProcessorMixin

__all__ = [
    "ADAPTER_FILE",
    "DTYPES",
    "ENCODER",
    "LORA_SETTINGS",
    "PROJECTOR",
    "PROJECTOR_FILE",
    "encoder_digest",
    "find_projectors",
    "get_dtype",
    "load_adapter",
    "load_checkpoint",
    "merge_adapter",
    "projector_state",
    "save_adapter",
    "save_merged",
]

PROJECTOR = "multi_modal_projector"
"""What models call the module between encoder and decoder."""
ENCODER = "audio_tower"
"""What Audio Flamingo 3, and most others, call the encoder."""
PROJECTOR_FILE = "projector.safetensors"
"""Where a trained projector lies, beside the two files of peft's format."""
LORA_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora")
"""What of a ``LoraConfig`` decides, beside the weights, what an adapter does."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
"""What weights may be kept in."""
ADAPTER_FILE = "adapter_model.safetensors"
"""Weights in peft's format."""
_CONFIG_FILE = "adapter_config.json"  # without it neither peft nor we read an adapter
_PARTS = {
    # Checkpoints that can speak: the part that listens and writes is loaded, whose generate is the common one.
    "Qwen2_5OmniModel": "Qwen2_5OmniThinkerForConditionalGeneration",  # the name in the published ones
    "Qwen2_5OmniForConditionalGeneration": "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration": "Qwen3OmniMoeThinkerForConditionalGeneration",
}


def get_dtype(name: str | torch.dtype) -> torch.dtype:
    """The dtype of this name in :data:`DTYPES`, or given itself.

    Raises:
        UnknownNameError: If there is none.
    """
    name = str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return DTYPES[name]


def load_checkpoint(
    name: str,
    processor: ProcessorMixin | None = None,
    *,
    dtype: str | None = None,
    attn_implementation: str = "sdpa",
    quantization_config: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Loads a model with its processor.

    Args:
        name: Name or path of a checkpoint, of which an Omni model's thinker is loaded; ``"pocket"``, the trained pocket
            model; or ``"pocket-untrained"``, its parts without what training added.
        processor: Its processor, if it is there already.
        dtype: Of the weights, a name of :data:`DTYPES`; the checkpoint's own, and float32 for the pocket model, if None
            or ``"auto"``.
        attn_implementation: As in ``from_pretrained``.
        quantization_config: As in ``from_pretrained``, as a mapping.

    Returns:
        The model, and the processor.

    Raises:
        ConfigurationError: If the dtype is not known, or the pocket model is to be quantized: it is widened from 4-bit
            weights.
        HeadRouterError: If transformers has none of the checkpoint's architectures.
        ImportError: If the quantization needs a package that is not installed; it names the package.
    """
    kind = None if dtype in (None, "auto") else get_dtype(dtype)
    if name in ("pocket", "pocket-untrained"):
        from headrouter_pl.models.pocket import load_pocket
        from headrouter_pl.models.pocket_weights import load_trained_pocket

        if quantization_config is not None:
            raise ConfigurationError("The pocket model cannot be quantized; quantization_config is for checkpoints.")
        load = load_pocket if name == "pocket-untrained" else load_trained_pocket
        model, its_processor = load(dtype=kind or torch.float32, attn_implementation=attn_implementation)
        return model, processor or its_processor
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    architectures: Sequence[str] = [_PARTS.get(each, each) for each in config.architectures or ()]
    known = [getattr(transformers, each) for each in architectures if hasattr(transformers, each)]
    if not known:
        raise HeadRouterError(f"{name} names the architectures {list(architectures)}; none is in transformers.")
    quantized = {} if quantization_config is None else {"quantization_config": dict(quantization_config)}
    model = known[0].from_pretrained(name, dtype=kind or "auto", attn_implementation=attn_implementation, **quantized)
    return model, processor or transformers.AutoProcessor.from_pretrained(name)


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Puts an adapter in peft's format on a model, and the projector that was trained with it, if there is one.

    Args:
        model: The model that the adapter was trained on; it is wrapped, as peft does.
        folder: With ``adapter_config.json``, ``adapter_model.safetensors`` and perhaps ``projector.safetensors``, as of
            :func:`save_adapter`.

    Returns:
        The model with the adapter, which can be trained further.

    Raises:
        HeadRouterError: If the folder has no such adapter, or it does not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    folder = Path(folder)
    saved, config = _read_adapter(folder)
    projector = tensorfile.read(folder / PROJECTOR_FILE)[1] if (folder / PROJECTOR_FILE).is_file() else None
    config.inference_mode = False
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True, config=config)
        ours = get_peft_model_state_dict(adapted).keys()
        if ours != saved.keys():  # peft only warns
            missing, more = sorted(ours - saved.keys())[:3], sorted(saved.keys() - ours)[:3]
            raise HeadRouterError(f"The adapter in {folder} is of another model: without {missing}, with {more}.")
        if projector is not None:
            for module in find_projectors(adapted):
                module.load_state_dict(projector)
        adapted.eval()  # peft leaves what is to train in training mode
    except (RuntimeError, ValueError) as error:
        raise HeadRouterError(f"The adapter in {folder} does not fit {type(model).__name__}: {error}") from error
    return adapted


def _read_adapter(folder: Path) -> tuple[dict[str, Tensor], PeftConfig]:
    """The weights of an adapter in peft's format, and its config."""
    from peft import PeftConfig

    try:
        return tensorfile.read(folder / ADAPTER_FILE)[1], PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, HeadRouterError) as error:
        raise HeadRouterError(f"{folder} has no adapter in peft's format: {error}") from error


def encoder_digest(source: str | Path | PeftModel) -> str:
    """Names the weights of the encoder's part of a LoRA adapter, and how they are scaled, in sixteen hex digits.

    Args:
        source: A folder in peft's format, or a model with one adapter.

    Returns:
        The digits; empty if the adapter leaves the encoder as it is.

    Raises:
        HeadRouterError: If the folder has no adapter.
    """
    from peft import get_peft_model_state_dict

    config: Any
    if isinstance(source, (str, Path)):
        saved, config = _read_adapter(Path(source))
    else:
        saved, config = get_peft_model_state_dict(source), source.peft_config["default"]
    weights = {name: saved[name] for name in sorted(saved) if f".{ENCODER}." in name}
    scaling = {name: getattr(config, name, None) for name in LORA_SETTINGS}
    return digest([weights, scaling]) if weights else ""


def save_adapter(
    model: nn.Module, folder: str | Path, state: Mapping[str, Tensor] | None = None, *, projector: bool = False
) -> Path:
    """Saves the adapter of a model in peft's format, which :func:`load_adapter` and peft itself read.

    ``adapter_config.json`` appears last: a folder that has it has all the rest, of the same adapter.

    Args:
        model: A PEFT model with one adapter.
        folder: Where to; files that are there are replaced, and while that is under way there is no adapter to read.
        state: The model's state dict, if the model does not hold all of it (sharded weights).
        projector: Whether to save the projector too, as ``projector.safetensors``.

    Returns:
        The folder.

    Raises:
        HeadRouterError: If the model has no adapter, or none of peft's, or the projector cannot be written.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise HeadRouterError("There is no adapter to save: the model was trained without one.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    whole = dict(model.state_dict() if state is None else state)
    with tempfile.TemporaryDirectory(dir=folder) as name:  # in it, for what is beside it may be another disk
        scratch = Path(name)
        if (folder / "README.md").is_file():
            shutil.copy(folder / "README.md", scratch)  # peft adds to the card that is there
        model.save_pretrained(name, state_dict=whole)
        if projector:
            tensorfile.write(scratch / PROJECTOR_FILE, projector_state(whole))
        # Adapters that are not called "default" are in folders of their own.
        files = [path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()]
        configs = [file for file in files if file.name == _CONFIG_FILE]
        for file in (*configs, Path(PROJECTOR_FILE)):
            (folder / file).unlink(missing_ok=True)  # of another run
        for file in (*(file for file in files if file not in configs), *configs):
            (folder / file).parent.mkdir(exist_ok=True)
            move(scratch / file, folder / file)
    return folder


def save_merged(model: nn.Module, processor: ProcessorMixin, folder: str | Path) -> Path:
    """Saves a checkpoint as ``from_pretrained`` reads it, with the adapter added to the weights.

    A copy is merged, so that there must be memory for two models; the model stays as it is.

    Args:
        model: A PEFT model, or a plain one, which is saved as it is.
        processor: Saved beside it.
        folder: Where to.

    Returns:
        The folder.

    Raises:
        HeadRouterError: If the weights are quantized: merging would round the adapter to their few bits.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        if getattr(model.get_base_model(), "is_quantized", False):
            raise HeadRouterError(
                "An adapter is not merged into quantized weights, which would round it away. Load the checkpoint "
                "without quantization_config, with this adapter, and merge that."
            )
        model = merge_adapter(copy.deepcopy(model))
        for module in find_projectors(model, needed=False):
            module.to(model.dtype)  # type: ignore[arg-type]  # it trains in float32
    model.save_pretrained(str(folder))  # type: ignore[operator]
    processor.save_pretrained(str(folder))
    return Path(folder)


def merge_adapter(model: PeftModel) -> Any:
    """Adds the adapter to the weights, in place, and gives the stock model."""
    merged: Any = model.merge_and_unload()
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # left behind by peft: transformers would take the model for an adapted one
    return merged


def projector_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projector's weights out of a model's, by their names in it."""
    parts = ((name.partition(f"{PROJECTOR}."), value) for name, value in state.items())
    return {rest: value.detach().cpu().contiguous() for (_, found, rest), value in parts if found}


def find_projectors(model: nn.Module, *, needed: bool = True) -> list[nn.Module]:
    """The modules named :data:`PROJECTOR` in a model.

    Raises:
        HeadRouterError: If one is needed and there is none.
    """
    found = [module for name, module in model.named_modules() if name.split(".")[-1] == PROJECTOR]
    if needed and not found:
        raise HeadRouterError(f"{type(model).__name__} has no {PROJECTOR!r}.")
    return found
