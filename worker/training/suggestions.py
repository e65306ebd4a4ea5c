"""A search by Optuna (Akiba et al. 2019): sets of values proposed in batches, told fold by fold, and given up when paired scores say that they are worse.

A pair is a fold and a seed, which two sets of values share. A set is given up when the signed-rank test (Wilcoxon 1945) over its pairs with the best one so far
is significant at 5 %, two-sided. Five pairs cannot be: even a unanimous vote has p = 2/2⁵ = 0.0625. Six can: 2/2⁶ = 0.031.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from regtrain.contract.ranges import Suggest

FEWEST_PAIRS = 6
ONE_SIDED = 0.025
"""Optuna's test asks only whether a set of values is worse: half of a two-sided 5 %."""


class Suggestions:
    """One search. Places number the sets of values in the order in which they are asked for; the same answers lead to the same proposals."""

    def __init__(self, space: Mapping[str, Suggest[float]], *, seed: int, higher_is_better: bool, prune: bool) -> None:
        with _quiet() as optuna:
            self._space = {path: optuna.distributions.FloatDistribution(*r.suggest, log=r.log) for path, r in space.items()}
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            pruner = optuna.pruners.WilcoxonPruner(p_threshold=ONE_SIDED, n_startup_steps=FEWEST_PAIRS)
            self._study = optuna.create_study(direction="maximize" if higher_is_better else "minimize", sampler=sampler, pruner=pruner)
        self._prune = prune
        self._trials: dict[int, Any] = {}
        self._told: dict[int, int] = {}
        """Place → how many of its pairs have been told."""
        self.given_up: set[int] = set()
        """Places whose other runs are not worth training."""

    def values(self, place: int) -> dict[str, float]:
        """The proposal at a place, asked for when it is needed first."""
        if place not in self._trials:
            with _quiet():
                self._trials[place] = self._study.ask(self._space)
        return dict(self._trials[place].params)

    def tell(self, place: int, scores: list[float], *, of: int) -> None:
        """The scores of the first pairs of a set of values, of so many in all: not finite where a run failed."""
        trial, told = self._trials[place], self._told.get(place, 0)
        self._told[place] = len(scores)
        with _quiet() as optuna:
            states = optuna.trial.TrialState
            if not np.isfinite(scores).all():
                self._study.tell(trial, state=states.FAIL)
                self.given_up.add(place)
                return
            for step in range(told, len(scores)):
                trial.report(scores[step], step)
            if len(scores) == of:
                self._study.tell(trial, float(np.mean(scores)))
            elif self._prune and trial.should_prune():
                self._study.tell(trial, state=states.PRUNED)
                self.given_up.add(place)


@contextmanager
def _quiet() -> Iterator[Any]:
    """Optuna, imported when it is needed, without its log and its warnings that what we use may change: the version is pinned."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield optuna
