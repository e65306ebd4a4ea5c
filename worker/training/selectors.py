"""What the training rows alone say about the strength of a ridge: leave-one-out, generalized cross-validation and evidence, in closed form."""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from regtrain.contract.job import JobSpec
from regtrain.contract.losses import HalfSquaredError, SquaredError
from regtrain.contract.models import LinearModel
from regtrain.contract.regularizers import L2
from worker.training import ridge
from worker.training.losses import curvature
from worker.training.prepare import Job


def is_ridge(spec: JobSpec) -> bool:
    """Whether the objective is that of ridge regression and of nothing else: a linear model, a squared loss, one l2 on the weights."""
    match spec.regularizers:
        case (L2(on="weights"),):
            return isinstance(spec.model, LinearModel) and isinstance(spec.loss, SquaredError | HalfSquaredError)
        case _:
            return False


def selectors(job: Job, lams: Sequence[float]) -> dict[str, Any] | None:
    """The λ that each closed form would take, and what each says of these λ, on the job's training rows; None for other jobs than ridge, and with variants.

    Errors are in the unit of the job's loss. A `lambda` of 0 or null (infinite) means that the score falls towards that end.
    """
    if not is_ridge(job.spec) or job.spec.variants:
        return None
    assert isinstance(job.spec.model, LinearModel)
    of = ridge.decomposed(job.train.x, job.train.y, intercept=job.spec.model.bias)
    if of is None or of.n < 2:
        return None
    loss = curvature(job.spec.loss)
    strengths = torch.tensor(lams, dtype=torch.float64) * of.n / loss
    scores: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
        "leave_one_out": (loss / 2, lambda a: ridge.leave_one_out(of, a)),
        "gcv": (loss / 2, lambda a: ridge.generalized(of, a)),
        "log_evidence": (-1.0, lambda a: -ridge.log_evidence(of, a)),
    }
    found: dict[str, Any] = {}
    for name, (unit, score) in scores.items():
        best = ridge.lowest(of, score)
        lam = best.a * loss / of.n
        found[name.removeprefix("log_")] = {"lambda": lam if isfinite(lam) else None, name if name == "log_evidence" else "score": unit * best.score}
    columns = {name: (unit * score(strengths)).tolist() for name, (unit, score) in scores.items()} if lams else {}
    return {**found, "table": [{"lambda": lam, **{name: column[row] for name, column in columns.items()}} for row, lam in enumerate(lams)]}
