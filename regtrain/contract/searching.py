"""Ranges whose values are found by training, and variants: where they may stand, and what they need."""

from collections.abc import Iterator

from regtrain.contract import grouping
from regtrain.contract.datasets import Facts
from regtrain.contract.errors import Problem
from regtrain.contract.job import JobSpec
from regtrain.contract.models import LinearModel
from regtrain.contract.ranges import Adapt, Path, Suggest, ends_of
from regtrain.contract.regularizers import L1, Dropout, ElasticNet, GroupLasso, SparseGroupLasso
from regtrain.contract.runs import ranges, warm_axis
from regtrain.contract.variants import specs_of

WITH_KINK = (L1, ElasticNet, GroupLasso, SparseGroupLasso)
"""Penalties that set all weights of a linear model to zero at a finite strength: those with a λ_max."""


def refusals(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    """Ranges whose values are found by training: where they may stand, and what they need."""
    found, selection = list(ranges(spec)), spec.selection
    suggested = [path for path, r in found if isinstance(r, Suggest)]
    measured = selection.folds is not None or spec.dataset.validation > 0
    for path, r in found:
        if isinstance(r, Path):
            yield from _path(spec, path)
        if suggested and not isinstance(r, Suggest | Adapt):
            yield Problem(path, f"a grid and a search do not go together: {suggested[0]} is suggested", "suggest this number too, or give all of them as values")
    for path in [path for path, r in found if isinstance(r, Path)][1:]:
        yield Problem(path, "a job has one path", "give the other strengths as values")
    if suggested and selection.trials is None:
        yield Problem("selection.trials", f"{suggested[0]} is suggested, and it is not said how often", "set selection.trials, such as 50")
    if suggested and not measured:
        yield Problem("selection", "a search needs validation rows to learn from", "set dataset.validation, such as 0.2, or selection.folds")
    if selection.trials is not None and not suggested:
        yield Problem("selection.trials", "nothing is suggested", 'put {"suggest": [low, high]} in place of a number, or leave trials out')
    if selection.warm_start and warm_axis(spec) is None:
        reason = "a warm start goes from the strongest to the weakest of one searched strength, and there is not exactly one"
        yield Problem("selection.warm_start", reason, "put a range in place of one lambda or rate")
    if selection.outer is not None and selection.folds is None:
        yield Problem("selection.outer", "outer folds repeat a choice that is made by inner ones", "set selection.folds, such as 5")
    elif selection.outer is not None and grouping.smallest_outer(spec, facts) < (selection.folds or 0):
        what = "groups" if selection.grouped else "rows"
        yield Problem("selection.outer", f"beside an outer fold too few {what} are left for {selection.folds} inner folds", "use fewer folds")


def _path(spec: JobSpec, path: str) -> Iterator[Problem]:
    parts = path.split(".")
    regularizer: object = spec.regularizers[int(parts[1])] if parts[0] == "regularizers" and parts[-1] == "lambda" else None
    if not isinstance(regularizer, WITH_KINK):
        yield Problem(path, "a path begins at λ_max, which l1, elastic_net, group_lasso and sparse_group_lasso have", 'use {"log": [low, high], "points": n}')
    elif not isinstance(spec.model, LinearModel):
        yield Problem(path, "λ_max is known for linear models alone", 'use {"log": [low, high], "points": n}, with "warm_start": true in selection if you like')
    elif regularizer.on == "all":
        yield Problem(f"{path.removesuffix('lambda')}on", "with a penalised bias λ_max is not where all weights are zero", 'use "on": "weights"')
    elif isinstance(regularizer, ElasticNet) and ends_of(regularizer.l1_ratio)[0] == 0:
        yield Problem(f"{path.removesuffix('lambda')}l1_ratio", "without a share of L1 no λ sets all weights to zero", "use an l1_ratio above 0, or another range")
    elif any(isinstance(r, Dropout) for r in spec.regularizers):
        yield Problem(path, "dropout changes the objective at every step: λ_max is not known", 'use {"log": [low, high], "points": n}')
    elif sum(isinstance(r, WITH_KINK) for r in spec.regularizers) > 1:
        yield Problem(path, "another penalty also sets weights to zero: λ_max of one alone is not known", 'use {"log": [low, high], "points": n}')


def of_variants(spec: JobSpec) -> Iterator[Problem]:
    """What is known of variants together."""
    losses = {variant.loss.kind for _, variant in specs_of(spec)}
    if spec.variants and len({str(variant.loss) for _, variant in specs_of(spec)}) > 1 and spec.selection.metric == "loss/val" and _compares(spec):
        told = " and ".join(sorted(losses)) if len(losses) > 1 else "losses of different settings"
        yield Problem("selection.metric", f"the variants have {told}, whose values cannot be compared", 'use "metric": "accuracy/val", or keep the loss')


def _compares(spec: JobSpec) -> bool:
    return spec.dataset.validation > 0 or spec.selection.folds is not None
