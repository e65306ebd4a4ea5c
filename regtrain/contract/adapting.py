"""A strength that adapts itself: where it may stand, and what may stand beside it."""

from collections.abc import Iterator
from math import exp

from regtrain.contract.errors import Problem, Warned
from regtrain.contract.job import JobSpec
from regtrain.contract.models import Cnn, Layer, Mlp, Rnn
from regtrain.contract.optimizers import Lbfgs, Proximal
from regtrain.contract.ranges import Adapt
from regtrain.contract.regularizers import L2, Dropout, EarlyStopping, On, StepPenalty
from regtrain.contract.runs import ranges

RATE = 0.05
"""How far `validation_gradient` moves ln λ in an epoch, at first: the rate of Adam."""
FEW_EPOCHS = 100


def adapting(spec: JobSpec) -> tuple[str, Adapt[float]] | None:
    """Path and spec of the strength that adapts."""
    return next(((path, r) for path, r in ranges(spec) if isinstance(r, Adapt)), None)


def fixed(spec: JobSpec, path: str, strength: float) -> JobSpec:
    """The spec with a number in place of the strength that adapts."""
    place = int(path.split(".")[1])
    regularizers = tuple(r.model_copy(update={"lam": strength}) if index == place else r for index, r in enumerate(spec.regularizers))
    return spec.model_copy(update={"regularizers": regularizers})


def refusals(spec: JobSpec, shape: list[Layer]) -> Iterator[Problem]:
    """What keeps a strength from adapting."""
    found = [(path, r) for path, r in ranges(spec) if isinstance(r, Adapt)]
    for number, (path, r) in enumerate(found):
        own = _regularizer(spec, path)
        if not isinstance(own, L2):
            reason = "only the strength of l2 adapts: both methods need a penalty with a second derivative, whose size they know"
            yield Problem(path, reason, 'adapt the lambda of {"kind": "l2"}; elsewhere use {"log": [low, high], "points": n}')
            continue
        if number:
            yield Problem(path, "two strengths that adapt at once do not know of each other", "let one adapt, and give the other a number")
        if isinstance(spec.model, Rnn):
            yield Problem(path, "a strength adapts by the curvature of the loss, which is not computed for recurrent models", 'use {"log": [low, high], "points": n}')
            continue
        if min(r.starts) <= 0:
            yield Problem(f"{path}.start", "a strength adapts in its logarithm, and 0 has none", "start large, such as 1")
        yield from _rows_and_model(spec, path, r, own)
        yield from _beside(spec, path, own, shape)
    if not found:
        return
    if isinstance(spec.optimizer, Lbfgs):
        yield Problem("optimizer.kind", "lbfgs remembers gradients of one objective, and a strength that adapts changes it every epoch", "use sgd, adam or proximal")
    if isinstance(spec.optimizer, Proximal) and spec.optimizer.tolerance > 0:
        yield Problem("optimizer.tolerance", "a run that stops at the minimum for one strength does not find the next", "leave it out: the budget ends the run")
    if spec.selection.rule == "one_standard_error":
        yield Problem("selection.rule", "one_standard_error takes the strongest of given strengths, and this one finds itself", 'use "best" or "median"')


def warnings(spec: JobSpec) -> Iterator[Warned]:
    """What was probably not meant."""
    found = adapting(spec)
    if found is not None and found[1].adapt == "validation_gradient" and spec.budget.epochs < FEW_EPOCHS:
        factor = exp(RATE * spec.budget.epochs)
        yield Warned("budget.epochs", f"validation_gradient makes one small move an epoch: {spec.budget.epochs} epochs change λ by a factor of about {factor:.3g} at most")


def _regularizer(spec: JobSpec, path: str) -> object:
    """The regularizer whose λ stands at a path; None for other numbers."""
    match path.split("."):
        case ["regularizers", place, "lambda"]:
            return spec.regularizers[int(place)]
        case _:
            return None


def _rows_and_model(spec: JobSpec, path: str, r: Adapt[float], own: L2) -> Iterator[Problem]:
    if r.adapt == "validation_gradient":
        if spec.dataset.validation == 0 and spec.selection.folds is None:
            yield Problem(
                f"{path}.adapt", "validation_gradient follows the loss on validation rows, and there are none", 'set dataset.validation, such as 0.2, or adapt "evidence"'
            )
    elif isinstance(spec.model, Mlp | Cnn) and spec.model.reparametrization is not None:
        reason = f"evidence takes the curvature of single weights, and {spec.model.reparametrization.kind} makes each of them a function of several"
        yield Problem(f"{path}.adapt", reason, 'adapt "validation_gradient", or leave model.reparametrization out')
    elif own.on == "all" and isinstance(spec.model, Mlp | Cnn) and spec.model.normalization is not None:
        yield Problem(f"{path.removesuffix('lambda')}on", "evidence has no curvature for the parameters of a normalization", 'use "on": "weights"')


def _beside(spec: JobSpec, path: str, own: L2, shape: list[Layer]) -> Iterator[Problem]:
    """Other regularizers: what changes the objective must be smooth, and must not hold the same weights."""
    mine = int(path.split(".")[1])
    for index, other in enumerate(spec.regularizers):
        at = f"regularizers.{index}"
        match other:
            case L2() if index != mine and _layers(own.on, shape) & _layers(other.on, shape):
                yield Problem(at, "another l2 holds the same weights as the one that adapts", 'keep one of them, or let them act "on" different layers')
            case EarlyStopping():
                yield Problem(at, "early stopping ends a run before its strength has settled, or goes back to weights of another strength", "leave it out")
            case L2() | Dropout() | StepPenalty():
                pass
            case _:
                yield Problem(at, f"a strength adapts by second derivatives of the objective, and {other.kind} is no smooth part of it", "leave one of them out")


def _layers(on: On, shape: list[Layer]) -> set[str]:
    return set(on) if isinstance(on, tuple) else {layer.name for layer in shape}
