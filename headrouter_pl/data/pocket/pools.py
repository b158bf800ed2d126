"""Clips of a split by what can be asked about them, for drawing with every answer equally likely."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.questions import ROLE_LABEL, role_of

__all__ = ["Pools"]

_SYNTHETIC = {"prompt": "sentence", "phrase": "spoken phrase"}
"""Role of a synthetic clip -> its pool, so that real speech is not outnumbered."""


@dataclass(frozen=True)
class Pools:
    """Clips of one split.

    Attributes:
        library: All clips.
        roles: Role -> answer -> indices of clips. Roles are those of :func:`role_of`, and ``"sentence"`` and
            ``"spoken phrase"`` of synthetic speech; where a role has no answer of its own, clips are grouped by voice.
        backgrounds: Indices of backgrounds.
        murmurs: Indices of clips that may be heard quietly: prompts and lines.
    """

    library: ClipLibrary
    roles: Mapping[str, Mapping[str, list[int]]]
    backgrounds: list[int]
    murmurs: list[int]

    @classmethod
    def of(cls, library: ClipLibrary, split: str) -> Pools:
        """The clips of a split."""
        roles: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        backgrounds, murmurs = [], []
        for index, (clip, its_split) in enumerate(zip(library.clips, library.splits, strict=True)):
            if its_split != split:
                continue
            if clip.kind == "background":
                backgrounds.append(index)
            if role := role_of(clip):
                if clip.voice.startswith("synthetic/"):
                    role = _SYNTHETIC.get(role, role)
                elif role in ("prompt", "room"):
                    murmurs.append(index)
                answer = getattr(clip, ROLE_LABEL[role]) if role in ROLE_LABEL else clip.voice
                roles[role][answer].append(index)
        return cls(library, {role: dict(answers) for role, answers in roles.items()}, backgrounds, murmurs)

    def of_role(self, role: str) -> list[int]:
        """Indices of all clips of a role."""
        return [index for clips in self.roles.get(role, {}).values() for index in clips]

    def draw(
        self,
        rng: np.random.Generator,
        role: str,
        max_seconds: float = float("inf"),
        where: Callable[[Clip], bool] = lambda clip: True,
        power: float = 0.0,
    ) -> int | None:
        """A clip of a role: first an answer, then one of its clips.

        Args:
            rng: Source of the choice.
            role: Key of :attr:`roles`.
            max_seconds: Longest clip wanted.
            where: What else is wanted of the clip.
            power: Answers are as likely as the number of their clips to this power: 0 makes all equally likely, 1 all
                clips.

        Returns:
            Its index; None if none is left.
        """
        answers = self.roles.get(role, {})
        names = sorted(answers)
        if power and names:
            shares = np.array([len(answers[name]) for name in names]) ** power
            order = rng.choice(names, len(names), replace=False, p=shares / shares.sum())
        else:
            order = rng.permutation(names)
        for answer in order:
            fitting = [
                index
                for index in answers[answer]
                if self.library.seconds(index) <= max_seconds and where(self.library.clips[index])
            ]
            if fitting:
                return int(rng.choice(fitting))
        return None
