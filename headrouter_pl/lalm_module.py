"""A LightningModule over any supported Hugging Face audio language model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.models import find_lalm
from headrouter_pl.models.answer_logits import answer_logits
from headrouter_pl.models.checkpoints import (
    ENCODER,
    LORA_SETTINGS,
    PROJECTOR,
    PROJECTOR_FILE,
    encoder_digest,
    find_projectors,
    load_adapter,
    load_checkpoint,
    save_adapter,
    save_merged,
)
from headrouter_pl.models.encoded import EncodedAudio
from headrouter_pl.models.modes import evaluating
from headrouter_pl.tasks import Task, get_task
from headrouter_pl.tasks.scoring import PackedScores, TaskScores, batch_tasks, parse_batch, score_batch

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, ProcessorMixin

Batch = Mapping[str, Any]
"""``inputs``: what the model takes; ``answers`` and ``keys``: lists of strings. Training batches have ``labels`` in
``inputs``. Batches of :class:`headrouter_pl.data.AudioPromptDataModule` also say the task of each sample, and list
samples without usable audio; see :func:`headrouter_pl.tasks.scoring.score_batch`. Packed batches
(:mod:`headrouter_pl.data.packing`) have ``tasks``, those of the questions on each row: validation scores their answers
by the likeliest tokens, without generating."""

# Families whose loss is computed from the answers' logits alone. Their forward gives its keyword arguments to the loss.
_ANSWER_LOGITS = ("audioflamingo3", "musicflamingo")


class LALMModule(L.LightningModule):
    """Validates, tests, predicts and LoRA-tunes an audio language model.

    Args:
        model: A supported model, or the name or local path of a checkpoint, or ``"pocket"`` for the pocket model
            (``"pocket-untrained"`` for its parts alone).
        processor: Its processor; loaded from the same place if ``model`` is a name.
        task: A name of :data:`headrouter_pl.tasks.TASKS`, or a task: how answers are read and scored, where a batch
            does not say it for each sample.
        lora: A peft config; the model is wrapped with it and its other weights are frozen.
        adapter: Instead of ``lora``, the folder of an adapter that was trained before, in peft's format, with which to
            evaluate or to go on training; a projector that :meth:`save_adapter` saved there is taken too.
        generate: Settings of ``model.generate``; greedy, with the task's ``max_new_tokens``, by default.
        train_projector: Whether ``multi_modal_projector`` trains too, beside the adapter; in float32, as it does.
        encoded_audio: Whether batches hold outputs of the encoder rather than mel features; the encoder is taken out of
            the model, see :class:`headrouter_pl.models.encoded.EncodedAudio`.
        learning_rate: Of AdamW, for the weights that train.
        projector_learning_rate: Of AdamW, for the projector; ``learning_rate`` if None.
        lr_schedule: ``"constant"``, or ``"cosine"`` down to zero at the last step.
        warmup_steps: Steps in which the rate rises from zero.
        betas: Of AdamW.
        weight_decay: Of AdamW.
        dtype: Of the loaded weights, e.g. ``"bfloat16"``; for a name only. With ``lora``, bfloat16 weights and the
            trainer's ``precision="bf16-mixed"`` spare casting the frozen weights in each step.
        attn_implementation: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``; for a name only.
        quantization_config: As in ``from_pretrained``, as a mapping, e.g. ``{"load_in_4bit": True}`` for bitsandbytes
            or ``{"quant_method": "quanto", "weights": "int8"}``; for a name only. Trained with ``lora`` alone.
        initial_checkpoint: A Lightning checkpoint of this class whose weights to begin with, in a run of its own; the
            trainer's ``ckpt_path`` goes on with an interrupted run instead.

    With an adapter, checkpoints hold the weights that train, and no others.

    Raises:
        ConfigurationError: If arguments contradict each other.
        HeadRouterError: If the model is not supported, or an adapter or a checkpoint does not fit it.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        processor: ProcessorMixin | None = None,
        *,
        task: str | Task = "transcription",
        lora: PeftConfig | None = None,
        adapter: str | Path | None = None,
        generate: Mapping[str, Any] | None = None,
        train_projector: bool = False,
        encoded_audio: bool = False,
        learning_rate: float = 1e-4,
        projector_learning_rate: float | None = None,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        dtype: str | None = None,
        attn_implementation: str = "sdpa",
        quantization_config: Mapping[str, Any] | None = None,
        initial_checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if lora is not None and adapter is not None:
            raise ConfigurationError("Give lora, for a new adapter, or adapter, for one that there is; not both.")
        if isinstance(model, (str, Path)):
            model, processor = load_checkpoint(
                str(model),
                processor,
                dtype=dtype,
                attn_implementation=attn_implementation,
                quantization_config=quantization_config,
            )
        elif dtype is not None or quantization_config is not None:
            raise ConfigurationError("dtype and quantization_config are for a model given by its name.")
        if processor is None:
            raise HeadRouterError("Pass the model's processor, or the name of a checkpoint that has one.")
        family = find_lalm(model).family  # refused here rather than in the middle of a run
        self._answer_logits = family.model_type in _ANSWER_LOGITS
        if lora is not None:
            from peft import get_peft_model, prepare_model_for_kbit_training

            if getattr(model, "is_quantized", False):
                model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
            model = get_peft_model(model, lora)
        elif adapter is not None:
            model = load_adapter(model, adapter)
        self.model: nn.Module = model
        self._sharded = False
        self._warned = False  # of samples without an answer
        trained_there = adapter is not None and (Path(adapter) / PROJECTOR_FILE).is_file()
        self.save_projector = train_projector or trained_there
        self.projector_trained = trained_there or initial_checkpoint is not None
        if train_projector:
            if lora is None and adapter is None:
                raise HeadRouterError("train_projector is for lora; without lora, the projector trains with all else.")
            self._unfreeze_projector()
        self.encoded_audio = EncodedAudio(model) if encoded_audio else None
        self.strict_loading = False  # of checkpoints without frozen weights; on_load_checkpoint checks the others
        self.processor = processor
        self.task = get_task(task)
        given = dict(generate or {})
        config = given.get("generation_config")
        if given.get("num_return_sequences", getattr(config, "num_return_sequences", None)) not in (None, 1):
            raise ConfigurationError("generate may not set num_return_sequences: each sample has one answer to score.")
        told = {**(config.to_diff_dict() if config is not None else {}), **given}  # older versions tell defaults too
        self._length_given = told.get("max_new_tokens") is not None or told.get("max_length") is not None
        defaults: dict[str, Any] = {} if told.get("do_sample") is not None else {"do_sample": False}
        if not self._length_given:
            defaults["max_new_tokens"] = self.task.max_new_tokens
        self.generate_settings = {**defaults, **given}
        self.learning_rate = learning_rate
        self.projector_learning_rate = projector_learning_rate
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps
        self.betas = betas
        self.weight_decay = weight_decay
        self.metrics = nn.ModuleDict({stage: TaskScores(self.task) for stage in ("val", "test")})
        self.packed = PackedScores()
        if initial_checkpoint is not None:
            saved = torch.load(initial_checkpoint, map_location="cpu", weights_only=True)
            self.on_load_checkpoint(saved)
            self.load_state_dict(saved["state_dict"], strict=False)

    def configure_model(self) -> None:
        """Shards the weights by FSDP2, under ``ModelParallelStrategy``: each decoder layer, and the rest together."""
        if self.device_mesh is None or self._sharded:
            return
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = self.device_mesh["data_parallel"]
        for layer in find_lalm(self.model).layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        register_fsdp_forward_method(self.model, "generate")  # which calls inner forwards alone
        self._sharded = True

    def forward(self, **inputs: Any) -> Any:
        """The model's own forward."""
        return self.model(**inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the answer tokens."""
        inputs = self._to_model_dtype(batch["inputs"])
        if "labels" not in inputs:
            raise HeadRouterError("A training batch needs inputs['labels']; AudioPromptDataModule makes them for fit.")
        output = self._answer_forward(inputs) if self._answer_logits else self.model(**inputs, use_cache=False)
        self.log("train/loss", output.loss, prog_bar=True, batch_size=len(batch["keys"]))
        return output.loss

    def _answer_forward(self, inputs: Mapping[str, Tensor]) -> Any:
        """The stock forward with its loss, and logits ``[M, vocabulary]`` of the M tokens that a label follows."""
        with answer_logits(self.model, inputs["labels"]) as (following, _):
            return self.model(**inputs, use_cache=False, shift_labels=following)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]] | None:
        """Generates and scores answers; returns them as ``texts``, and as ``samples`` the rows of ``score_batch``.

        At the end of the epoch ``val/TASK`` is logged for each task, over the samples of all dataloaders, and
        ``val/average``, the mean of their scores (100 at best, see :func:`headrouter_pl.tasks.scoring.summarize`), if
        they are several. Packed batches, of several questions an audio, are scored without generating: an answer is
        right if each of its tokens is the likeliest after those before it, as greedy generation would have it. Logged
        as ``val/TASK``, with ``val/loss``.
        """
        if "tasks" not in batch:
            return self._evaluate(batch, "val")
        inputs = self._to_model_dtype(batch["inputs"])
        if not self._answer_logits:
            raise HeadRouterError(f"Packed validation is for {', '.join(_ANSWER_LOGITS)}; give one question a sample.")
        output = self._answer_forward(inputs)
        right = _answered_exactly(output.logits, inputs["labels"]).tolist()
        self.packed.update(batch["keys"], float(output.loss), batch["tasks"], right)
        return None

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Generates and scores answers, as :meth:`validation_step` does."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, str | None]]:
        """Generates answers: one record per sample, with ``key``, ``text`` and the parsed ``answer``."""
        texts = self._answers(batch)
        answers = parse_batch(batch, texts, self.task)
        rows = zip(batch["keys"], texts, answers, strict=True)
        failed = batch.get("failures") or ()
        return [
            *({"key": key, "text": text, "answer": answer} for key, text, answer in rows),
            *({"key": f["key"], "text": "", "answer": None, "failure": f["error"]} for f in failed),
        ]

    def answer(self, inputs: Mapping[str, Tensor], limits: Sequence[int] | None = None) -> list[str]:
        """Generated text of each sample, without its prompt.

        Args:
            inputs: What the model takes; labels are ignored.
            limits: Most tokens of each sample's answer, unless ``generate`` set a length for all.
        """
        inputs = self._to_model_dtype({name: value for name, value in inputs.items() if name != "labels"})
        settings = self.generate_settings
        if limits and not self._length_given:
            settings = {**settings, "max_new_tokens": max(limits)}
        if self._sharded:
            settings = {**settings, "synced_gpus": True}  # all processes gather weights at each step
        with evaluating(self.model):  # outside of a trainer, dropout would answer otherwise each time
            output = self.model.generate(**inputs, **settings)  # type: ignore[operator]
        output = output[:, inputs["input_ids"].shape[1] :]
        if limits and not self._length_given and len(set(limits)) > 1:
            output = [row[:limit] for row, limit in zip(output, limits, strict=True)]  # as in a batch of its own
        return self.processor.batch_decode(output, skip_special_tokens=True)

    def _answers(self, batch: Batch) -> list[str]:
        if not batch["keys"]:  # no sample has audio that can be used
            if self._sharded:
                raise HeadRouterError(
                    "A batch has no usable audio, and other processes, which gather sharded weights together, would "
                    "wait for this one. Mend the recordings, or set on_bad_audio='error' to see which they are."
                )
            return []
        return self.answer(batch["inputs"], [task.max_new_tokens for task in batch_tasks(batch, self.task)])

    def _to_model_dtype(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Processors give float32 features, which a model in half precision does not take."""
        dtype: torch.dtype = self.model.dtype  # type: ignore[assignment]
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, list[Any]]:
        texts = self._answers(batch)
        if not self._warned and "" in batch["answers"]:
            self._warned = True
            rank_zero_warn(
                f"The sample {batch['keys'][batch['answers'].index('')]!r} has no answer (a field 'answer', or what "
                "columns says is called so): anything the model says of it, and of others without one, counts as wrong."
            )
        rows = score_batch(batch, texts, self.task)
        self.metrics[stage].update(rows)  # type: ignore[operator]
        return {"texts": texts, "samples": rows}

    def on_validation_epoch_start(self) -> None:
        """Forgets the scores of the validation before."""
        self._reset_scores("val")
        self.packed.reset()
        self.packed.update([], 0.0, [], [])  # as above, where no batch is packed

    def on_test_epoch_start(self) -> None:
        """Forgets the scores of the test before."""
        self._reset_scores("test")

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/TASK``, and of packed batches ``val/loss`` too."""
        self._log_scores("val")
        self.log_dict({f"val/{name}": value for name, value in self.packed.compute().items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Logs ``test/TASK``."""
        self._log_scores("test")

    def _reset_scores(self, stage: str) -> None:
        self.metrics[stage].reset()  # type: ignore[operator]
        self.metrics[stage].update([])  # type: ignore[operator]  # packed batches never do, and compute would warn

    def _log_scores(self, stage: str) -> None:
        results = self.metrics[stage].compute()  # type: ignore[operator]
        values = {f"{stage}/{name}": result["value"] for name, result in results["tasks"].items()}
        if len(values) > 1:
            values[f"{stage}/average"] = results["average"]
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def save_adapter(self, folder: str | Path) -> Path:
        """Saves the adapter in peft's format, and the projector as ``projector.safetensors`` if it trained.

        Reads as ``LALMModule(model, adapter=folder)``, and, but for the projector, as
        ``PeftModel.from_pretrained(model, folder)``. Of sharded weights, all processes must call this, before the
        trainer ends; process zero writes.

        Args:
            folder: Where to; files that are there are replaced.

        Raises:
            HeadRouterError: If there is no adapter.
        """
        strategy = None if self._trainer is None else self.trainer.strategy
        if strategy is not None and strategy.lightning_module is not self:
            strategy = None  # the trainer has gone on to another module
        state: dict[str, Any]
        if self._sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
            state = dict(get_model_state_dict(self, options=options))
        else:
            with self._whole():
                state = self.state_dict() if strategy is None else strategy.lightning_module_state_dict()
        if strategy is None or strategy.is_global_zero:
            own: dict[str, Any] = {
                name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")
            }
            with self._whole():
                save_adapter(self.model, folder, own, projector=self.save_projector)
        return Path(folder)

    def save_merged(self, folder: str | Path) -> Path:
        """Saves a checkpoint that ``from_pretrained`` reads: the adapter in the weights, and the processor.

        Of several processes, process zero writes.

        Args:
            folder: Where to.

        Raises:
            HeadRouterError: If the weights are quantized or sharded, or the encoder has been taken out
                (``encoded_audio``).
        """
        if self._sharded:
            raise HeadRouterError("Sharded weights are not merged: save the adapter, and merge it in one process.")
        if self.encoded_audio is not None and not self.encoded_audio.restored:
            raise HeadRouterError(
                "The encoder is out of the model: call module.encoded_audio.restore() before merging."
            )
        if self._trainer is None or self.trainer.is_global_zero:
            save_merged(self.model, self.processor, folder)
        return Path(folder)

    def encoder_digest(self) -> str | None:
        """Names the adapter of an encoder that is out of the model, which the data must have been encoded with.

        Returns:
            As :func:`headrouter_pl.models.checkpoints.encoder_digest`; None without ``encoded_audio``.
        """
        if self.encoded_audio is None:
            return None
        if not hasattr(self.model, "peft_config"):
            return ""
        with self._whole():
            return encoder_digest(self.model)

    def on_fit_start(self) -> None:
        """Puts the model into training mode, for dropout; it was loaded in evaluation mode, which Lightning keeps."""
        self.model.train()
        for module in self.model.modules():
            # Their running means are in no adapter: what is frozen must stay as it was loaded.
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
                parameter.requires_grad for parameter in module.parameters()
            ):
                module.eval()

    def configure_optimizers(self) -> Any:
        """AdamW over the weights that train, with the schedule."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                own = self.projector_learning_rate if PROJECTOR in name else None
                rate = self.learning_rate if own is None else own
                groups.setdefault(rate, []).append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": weights, "lr": rate} for rate, weights in groups.items()],
            betas=self.betas,
            weight_decay=self.weight_decay,
        )
        if self.lr_schedule == "constant" and not self.warmup_steps:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Refuses a cosine schedule without an end."""
        if self.lr_schedule == "cosine" and self.trainer.estimated_stepping_batches == float("inf"):
            raise HeadRouterError("A cosine schedule must know its last step: set the trainer's max_steps.")

    def _rate_factor(self, step: int) -> float:
        """What the learning rates are multiplied by: linear warm-up, then constant, or half a cosine down to zero."""
        warmup = self.warmup_steps
        if step < warmup:
            return step / warmup
        if self.lr_schedule == "constant" or step == warmup:
            return 1.0
        # Not asked in configure_optimizers: the trainer would set the loader up there, before a checkpoint's state is
        # read, and a resumed run would begin its epoch anew.
        last = self.trainer.estimated_stepping_batches
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, last - warmup))))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drops what LoRA leaves as it was, and notes how the weights that train were made."""
        if hasattr(self.model, "peft_config") and not self._sharded:  # sharded ones are read as a whole
            trained = set(self._trained())
            checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in trained}
            with self._whole():  # the adapter of an encoder that is out of the model, too
                whole = self.state_dict()
                checkpoint["state_dict"] |= {name: whole[name] for name in self._trained() if name not in trained}
        checkpoint["headrouter_lora"] = self._lora_settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that does not fill the weights that train.

        Raises:
            HeadRouterError: It names what differs.
        """
        if "state_dict" not in checkpoint:  # a sharded one, which the strategy reads
            return
        with self._whole():
            saved, ours, needed = checkpoint["state_dict"], dict(self.state_dict()), self._trained()
        wrong = [f"{name} is missing" for name in needed if name not in saved]
        for name, value in saved.items():
            if name not in ours:
                wrong.append(f"{name} is not in this module")
            elif value.shape != ours[name].shape:
                wrong.append(f"{name} is {list(value.shape)}, not {list(ours[name].shape)}")
        was, now = checkpoint.get("headrouter_lora", {}), self._lora_settings()
        wrong += [f"LoRA's {key} was {was[key]}, not {now.get(key)}" for key in was if was[key] != now.get(key)]
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise HeadRouterError(f"The checkpoint is of another recipe: {'; '.join(wrong[:5])}{more}.")
        if self.encoded_audio is not None:  # what is out of the model when Lightning reads the rest
            with self._whole():
                encoder = {name: value for name, value in saved.items() if f".{ENCODER}." in name}
                self.load_state_dict(encoder, strict=False)

    def _whole(self) -> AbstractContextManager[None]:
        """With the encoder in its place."""
        return nullcontext() if self.encoded_audio is None else self.encoded_audio.whole()

    def _trained(self) -> list[str]:
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def _lora_settings(self) -> dict[str, Any]:
        config = getattr(self.model, "peft_config", {}).get("default")
        return {name: getattr(config, name) for name in LORA_SETTINGS if hasattr(config, name)}

    def _unfreeze_projector(self) -> None:
        for projector in find_projectors(self.model):
            projector.float().requires_grad_(True)
            # The encoder's outputs may be in half precision, and outside of autocast nothing else would cast them.
            projector.register_forward_pre_hook(_to_weights)


def _to_weights(projector: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:  # a lambda could not be pickled
    """Casts the encoder's outputs as the projector is: float32, or what the trainer's precision made of it."""
    dtype = next(projector.parameters()).dtype
    return tuple(arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


def _answered_exactly(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether every token of an answer is the likeliest one.

    Args:
        logits: ``[M, vocabulary]`` of the M tokens that a label follows, row by row.
        labels: int64 ``[n, L]``, -100 where there is none; an answer is a stretch of labels.

    Returns:
        Bool tensor ``[answers]``, row by row.
    """
    labelled = labels[:, 1:] != -100
    begins = labelled & (labels[:, :-1] == -100)
    answer = begins.flatten().cumsum(0)[labelled.flatten()] - 1
    wrong = (logits.argmax(-1) != labels[:, 1:][labelled]).long()
    return torch.zeros(int(begins.sum()), dtype=torch.long, device=labels.device).index_add(0, answer, wrong) == 0
