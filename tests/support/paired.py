"""Two methods compared on the same questions, from the parts that comparisons use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from headrouter_pl.statistics import Difference, Floats, difference_of, mean_over_tasks, resample_weights


def paired_bootstrap(a: ArrayLike, b: ArrayLike, tasks: Sequence[str], *, weights: Floats | None = None) -> Difference:
    """By resampling the questions, or with weights of :func:`resample_weights` their audios."""
    weights = resample_weights(tasks) if weights is None else weights
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return difference_of(float(mean_over_tasks(differences, tasks)), weights @ differences)
