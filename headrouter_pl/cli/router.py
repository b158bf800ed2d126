"""``headrouter-pl router``: how well the prompt router tells task types apart."""

from __future__ import annotations


def router(folds: int = 5, repeats: int = 1, seed: int = 0) -> None:
    """Cross-validates the prompt router on the shipped prompts, and checks it on others held out of its making.

    Args:
        folds: Folds of the stratified cross-validation.
        repeats: Repetitions of it, with other shuffles.
        seed: Of the shuffles.
    """
    from headrouter_pl.routers.evaluation import evaluate_shipped, format_report

    print(format_report(evaluate_shipped(folds=folds, repeats=repeats, random_state=seed)))
