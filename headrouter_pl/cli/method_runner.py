"""Runs pruning methods, as a configuration names them, on questions of the Pocket benchmark."""

from __future__ import annotations

import dataclasses
import pkgutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrouter_pl.cli.pocket import MAX_NEW_TOKENS
from headrouter_pl.digest import digest
from headrouter_pl.errors import ConfigurationError, HeadRouterError, unknown_name

if TYPE_CHECKING:
    from headrouter_pl.comparison import Method
    from headrouter_pl.data.pocket.benchmark import PocketItem
    from headrouter_pl.models.answering import EncodedPrompt
    from headrouter_pl.pruning.engine import PruningEngine
    from headrouter_pl.results import ResultsLog
    from headrouter_pl.scorers import Scorer


def read_methods(given: Sequence[Mapping[str, Any]]) -> list[Method]:
    """Methods of a configuration.

    Raises:
        ConfigurationError: If a setting is unknown or missing, or a name stands twice.
    """
    from headrouter_pl.comparison import Method

    known = [field.name for field in dataclasses.fields(Method)]
    methods: list[Method] = []
    for entry in given:
        for name in entry:
            if name not in known:
                raise unknown_name("method setting", str(name), known)
        if missing := {"name", "scorer"} - set(entry):
            raise ConfigurationError(f"The method {dict(entry)} lacks {', '.join(sorted(missing))}.")
        if entry["name"] in [method.name for method in methods]:
            raise ConfigurationError(f"Two methods are named {entry['name']!r}.")
        methods.append(Method(**entry))
    if not methods:
        raise ConfigurationError("There are no methods to compare.")
    return methods


def check_methods(methods: Sequence[Method]) -> None:
    """Builds each scorer once: a profile that is not there should be told before recordings are decoded.

    Raises:
        HeadRouterError: As :func:`build_scorer`.
    """
    for method in methods:
        build_scorer(method, (method.seeds or (None,))[0])


def read_ratios(given: Sequence[float]) -> list[float]:
    """The ratios below 1, largest first."""
    if not given or len(set(given)) < len(given) or not all(0 < ratio <= 1 for ratio in given):
        raise ConfigurationError(f"keep_ratios must differ and be in (0, 1], got {list(given)}.")
    return sorted((ratio for ratio in given if ratio < 1), reverse=True)


@dataclass(eq=False)
class Run:
    """A method with one seed at one ratio, ready to be attached."""

    method: Method
    seed: int | None
    ratio: float
    engine: PruningEngine


class MethodRunner:
    """Asks a model questions, unpruned and under every method at every ratio.

    Args:
        model: The model, on its device.
        processor: Its processor.
        methods: The methods.
        ratios: Keep ratios, all below 1.
        kinds: Types of the questions.

    Raises:
        HeadRouterError: If a method does not fit the model or the questions.
    """

    def __init__(
        self, model: Any, processor: Any, methods: Sequence[Method], ratios: Sequence[float], kinds: Sequence[str]
    ) -> None:
        from headrouter_pl.models.answering import EncodedPrompter

        self.model = model
        self.processor = processor
        self.prompter = EncodedPrompter(model, processor)
        self.runs: list[Run] = []
        for method in methods:
            if method.types is not None and (missing := set(kinds) - set(method.types)):
                raise ConfigurationError(
                    f"Method {method.name!r} has types for {sorted(method.types)}; there are questions of type "
                    f"{', '.join(sorted(missing))} too."
                )
            for seed in method.seeds or (None,):
                scorer = build_scorer(method, seed)
                self.runs += [Run(method, seed, ratio, self._engine(method, ratio, scorer)) for ratio in ratios]

    def _engine(self, method: Method, ratio: float, scorer: Scorer) -> PruningEngine:
        from headrouter_pl.pruning import AudioTokenPruner

        pruner = AudioTokenPruner(
            ratio, layer=method.layer, scorer=scorer, tokenizer=self.processor, evict_early=method.evict_early
        )
        return pruner.engine(self.model)

    def calibrate(self, items: Sequence[PocketItem], folder: Path) -> None:
        """Measures the profile of each method whose profile is "self", on the first questions, unpruned.

        Args:
            items: The questions, those of one scene together.
            folder: Of the audio.
        """
        import torch

        from headrouter_pl.calibration import SELF_CALIBRATION_BATCHES, SelfCalibration
        from headrouter_pl.data.audio import read_audio
        from headrouter_pl.models.encoded import encoded_audio
        from headrouter_pl.scorers import HeadRouterScorer

        rate = self.processor.feature_extractor.sampling_rate
        measured: dict[str, HeadRouterScorer] = {}
        for run in self.runs:
            if run.method.profile != "self":
                continue
            if run.method.name not in measured:
                scorer = run.engine.scorer
                assert isinstance(scorer, HeadRouterScorer)
                sums = SelfCalibration(run.engine.handle, run.engine.layer, scorer.router, scorer.queries or "prompt")
                engine = sums.engine(self.processor)
                for audio, scene in groupby(items[:SELF_CALIBRATION_BATCHES], key=lambda item: item.audio):
                    encoded = self.prompter.encode(read_audio(folder / audio, rate))
                    with encoded_audio(self.model), torch.inference_mode(), engine:
                        for item in scene:
                            self.model(**self.prompter.inputs(encoded, item.prompt), logits_to_keep=1)
                measured[run.method.name] = HeadRouterScorer(sums.profile(), scorer.router)
            run.engine = self._engine(run.method, run.ratio, measured[run.method.name])

    def describe(self) -> dict[str, dict[str, Any]]:
        """The methods by name, with digests of what they have read: profiles, files."""
        told = {}
        for run in self.runs:
            if run.method.name not in told:
                told[run.method.name] = {
                    **dataclasses.asdict(run.method),
                    "layer": run.engine.layer,
                    "digest": _digest_scorer(run.method, run.engine.scorer),
                }
        return told

    def ask(self, items: Sequence[PocketItem], folder: Path, log: ResultsLog, seconds: float | None = None) -> None:
        """Asks what the log does not hold yet.

        Args:
            items: The questions, those of one scene together.
            folder: Of the audio.
            log: Where each answer goes.
            seconds: Begin no question after so long.
        """
        from tqdm.auto import tqdm

        from headrouter_pl.data.audio import read_audio
        from headrouter_pl.models.encoded import encoded_audio

        deadline = None if seconds is None else time.monotonic() + seconds
        rate = self.processor.feature_extractor.sampling_rate
        done = sum(not self._open(item, log) for item in items)
        warm = False
        with tqdm(total=len(items), initial=done, desc="comparing", unit="question", smoothing=0) as bar:
            for audio, scene in groupby(enumerate(items), key=lambda entry: entry[1].audio):
                open_ = [(number, item) for number, item in scene if self._open(item, log)]
                if deadline is not None and time.monotonic() >= deadline:
                    break
                if not open_:
                    continue
                encoded = self.prompter.encode(read_audio(folder / audio, rate))
                with encoded_audio(self.model):
                    for number, item in open_:
                        if deadline is not None and time.monotonic() >= deadline:
                            break
                        if not warm:  # what is loaded or allocated at first use is nobody's cost
                            self._warm_up(item, encoded)
                            warm = True
                        self._ask_one(item, encoded, log, number)
                        bar.update()

    def _open(self, item: PocketItem, log: ResultsLog) -> bool:
        keys = (key_of(item, run.method.name, run.seed, run.ratio) for run in self.runs)
        return _unpruned_key(item) not in log.rows or any(key not in log.rows for key in keys)

    def _ask_one(self, item: PocketItem, encoded: EncodedPrompt, log: ResultsLog, number: int) -> None:
        from headrouter_pl.comparison import evidence_recall

        inputs = self.prompter.inputs(encoded, item.prompt)
        start = int((inputs["input_ids"][0] == self.model.config.audio_token_id).nonzero()[0])
        # Timed again by a run that goes on: the machine may be another.
        text, unpruned = self.answer(inputs)
        if _unpruned_key(item) not in log.rows:
            recall = evidence_recall(range(encoded.features.shape[1]), item.evidence_tokens, encoded.features.shape[1])
            log.add([_row(item, None, text, unpruned, unpruned, applied=1.0, recall=recall, route={})])
        # No method always comes right after the unpruned run.
        first = number % max(len(self.runs), 1)
        for run in (*self.runs[first:], *self.runs[:first]):
            if key_of(item, run.method.name, run.seed, run.ratio) not in log.rows:
                text, seconds, sample = self.answer_pruned(run, item, encoded, inputs)
                recall = evidence_recall(sample.kept.numpy() - start, item.evidence_tokens, sample.seen)
                log.add([
                    _row(item, run, text, seconds, unpruned, applied=sample.keep_ratio, recall=recall,
                         route=sample.types)
                ])  # fmt: skip

    def _warm_up(self, item: PocketItem, encoded: EncodedPrompt) -> None:
        inputs = self.prompter.inputs(encoded, item.prompt)
        self.answer(inputs, 1)
        for _, runs in groupby(self.runs, key=lambda run: run.method.name):
            self.answer_pruned(next(runs), item, encoded, inputs, 1)

    def answer_pruned(
        self, run: Run, item: PocketItem, encoded: EncodedPrompt, inputs: Mapping[str, Any], tokens: int | None = None
    ) -> tuple[str, float, Any]:
        """The answer under a method, the seconds of its prefill, and the report of the sample.

        Raises:
            HeadRouterError: If a score is NaN: the engine drops such a token, which would pass for the method's choice.
        """
        reveal_truth(run.engine.scorer, run.method, item, encoded.features.shape[1])
        if run.seed is not None:
            run.engine.scorer.seed = seed_for(item, run.seed)  # type: ignore[attr-defined]
        run.engine.report.clear()
        with run.engine:
            text, seconds = self.answer(inputs, tokens)
        sample = run.engine.report.samples[0]
        # Infinite scores may be meant: keep this token at all events, or never.
        if sample.importance is not None and bool(sample.importance.isnan().any()):
            raise HeadRouterError(
                f"{item.key}: scores of the method {run.method.name!r} are NaN. Check the recording, the model's "
                "weights and dtype (float16 overflows where bfloat16 does not), and the scorer, if it is your own."
            )
        return text, seconds, sample

    def answer(self, inputs: Mapping[str, Any], tokens: int | None = None) -> tuple[str, float]:
        """The greedy answer, and the seconds of its prefill from embedding to first logits."""
        import torch

        from headrouter_pl.models.answering import multiplied_in_place
        from headrouter_pl.pruning.timing import time_prefills

        with torch.inference_mode(), multiplied_in_place(self.model), time_prefills(self.model, whole=True) as times:
            output = self.model.generate(**inputs, do_sample=False, max_new_tokens=tokens or MAX_NEW_TOKENS)
        answer = output[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(answer, skip_special_tokens=True).strip(), sum(times)


def build_scorer(method: Method, seed: int | None) -> Scorer:
    """The scorer of a method; where its profile is measured first, with the generic one.

    Raises:
        UnknownNameError: If there is none of that name, or no such profile.
        ConfigurationError: If it does not take the method's settings.
    """
    from headrouter_pl.routers import FixedRouter
    from headrouter_pl.scorers import SCORERS, HeadRouterScorer, Scorer

    made: Callable[..., Any]
    if "." in method.scorer:
        try:
            made = pkgutil.resolve_name(method.scorer)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(f"Method {method.name!r}: cannot import {method.scorer!r}: {error}") from error
    elif method.scorer in SCORERS:
        made = SCORERS[method.scorer]
    else:
        raise unknown_name("scorer", method.scorer, SCORERS)
    given = dict(method.init_args)
    if method.profile is not None:
        given["profile"] = "generic" if method.profile == "self" else method.profile
    if method.types is not None:
        given["router"] = FixedRouter(list(method.types.values())[:1])
    elif method.router is not None:
        given["router"] = method.router
    if seed is not None:
        given["seed"] = seed
    try:
        scorer = made(**given)
    except TypeError as error:
        raise ConfigurationError(
            f"Method {method.name!r}: scorer {method.scorer!r} does not take {', '.join(given)}: {error}"
        ) from error
    if not isinstance(scorer, Scorer):
        raise ConfigurationError(f"Method {method.name!r}: {method.scorer!r} gives no scorer, but {scorer!r}.")
    if method.profile == "self" and type(scorer) is not HeadRouterScorer:
        raise ConfigurationError(
            f"Method {method.name!r}: the profile 'self' is for the scorer 'headrouter', not for {method.scorer!r}. "
            "Give it a profile that is calibrated beforehand."
        )
    if seed is not None and not hasattr(scorer, "seed"):
        raise ConfigurationError(
            f"Method {method.name!r}: scorer {method.scorer!r} has no attribute seed, which each question sets anew."
        )
    return scorer


def reveal_truth(scorer: Any, method: Method, item: PocketItem, seen: int) -> None:
    """Lets a scorer that is a control know the question's evidence or type.

    Args:
        scorer: Its ``evidence``, and ``types`` of it or of its ``router``, are set where it has them.
        method: Says which type stands for the question's own.
        item: The question.
        seen: Audio tokens there are.
    """
    if hasattr(scorer, "evidence"):
        scorer.evidence = [[(min(first, seen), min(last, seen)) for first, last in item.evidence_tokens]]
    told: list[Any] = [scorer, getattr(scorer, "router", None)]
    for part in told:
        if hasattr(part, "types"):
            part.types = [item.type if method.types is None else method.types[item.type]]


def seed_for(item: PocketItem, seed: int) -> int:
    """The seed of a question's own draw: with one for all, audios of one length would keep the same tokens."""
    return zlib.crc32(f"{seed}|{item.key}".encode())


def key_of(item: PocketItem, method: str, seed: int | None, ratio: float) -> str:
    """What a row of the log is called."""
    return "|".join([item.key, method, "" if seed is None else str(seed), f"{ratio:.12g}"])


def _unpruned_key(item: PocketItem) -> str:
    from headrouter_pl.comparison import UNPRUNED

    return key_of(item, UNPRUNED, None, 1.0)


def _row(
    item: PocketItem,
    run: Run | None,
    text: str,
    seconds: float,
    unpruned: float,
    *,
    applied: float,
    recall: float | None,
    route: Mapping[str, float],
) -> dict[str, Any]:
    from headrouter_pl.cli.tables import machine
    from headrouter_pl.comparison import UNPRUNED
    from headrouter_pl.data.pocket.scoring import score_answer

    score = score_answer(item, text)
    name, seed, ratio = (UNPRUNED, None, 1.0) if run is None else (run.method.name, run.seed, run.ratio)
    return {
        "key": key_of(item, name, seed, ratio),
        "item": item.key,
        "task": item.task,
        "type": item.type,
        "seconds": item.seconds,
        "method": name,
        "seed": seed,
        "keep_ratio": ratio,
        "applied_ratio": applied,
        "prompt": item.prompt,
        "answer": item.answer,
        "text": text,
        "right": score.right,
        "valid": score.valid,
        "evidence_recall": None if recall is None else round(recall, 4),
        "route": {name: round(share, 4) for name, share in route.items()},
        "prefill_seconds": round(seconds, 6),
        "unpruned_seconds": round(unpruned, 6),
        "machine": machine(),
    }


def _digest_scorer(method: Method, scorer: Scorer) -> str:
    """Of all that a scorer was made with, and of the files that its settings name.

    The head weights that a method has measured itself do not count: their last bits differ from machine to machine, and
    what they follow from is in the configuration.
    """
    files = [Path(value).read_bytes() for value in _strings([method.profile, dict(method.init_args)])
             if Path(value).is_file()]  # fmt: skip
    return digest([None if method.profile == "self" else scorer, files])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, Sequence):
        for entry in value:
            yield from _strings(entry)
