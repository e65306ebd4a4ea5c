"""From which weights a job begins, where not from initial ones: those of an earlier job's run, after operations that leave its function as it is. Done in
worker/training/begin.py and surgery.py.

Gradient descent sees more of a net than its function: two nets with the same outputs can have layers that learn at rates orders of magnitude apart, and units that
never learn again. Surgery moves between such nets, so that what was learned is kept and what comes after can differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from regtrain.contract.base import Part
from regtrain.contract.errors import Problem
from regtrain.contract.models import Cnn, Layer, Mlp, Zeros
from regtrain.contract.ranges import Path
from regtrain.contract.regularizers import Box, L2Ball, MaxNorm, NonNegative, UnitNorm

if TYPE_CHECKING:
    from regtrain.contract.job import JobSpec

HOMOGENEOUS = ("relu", "leaky_relu", "identity")
"""φ(c·v) = c·φ(v) for every c > 0, so that a unit's scale can move from what it reads to what reads it."""


class Rebalance(Part):
    """For units with φ(cv) = cφ(v): weights and bias of each hidden unit times c, and the weights that read it divided by c, so that both have the same norm.

    Among all nets that differ by such scales it is the one with the smallest Σ‖W‖² + ‖b‖² (Stock et al. 2019), in which ‖W‖² of what a unit reads and of what
    reads it stay equal under small steps of gradient descent (Du, Hu & Lee 2018).
    """

    kind: Literal["rebalance"]


class Rescale(Part):
    """For units with φ(cv) = cφ(v): each layer times a factor of its own, so that on the training rows the gradient at every hidden layer is as long as at the next, χ = 1.

    The head takes the factors back. The one factor that χ leaves free makes ‖∇W‖/‖W‖ of the first layer and of the head equal.
    """

    kind: Literal["rescale"]


class Revive(Part):
    """Each relu unit that is 0 on all training rows gets new weights and bias, drawn as at initialisation, and nothing reads it: the weights behind it begin at 0.

    One that would be 0 again is turned round, −W and −b, and then fires (Sokar et al. 2023, who recycle units in the same way).
    """

    kind: Literal["revive"]


Operation = Annotated[Rebalance | Rescale | Revive, Field(discriminator="kind")]


class Begin(Part):
    """The weights that a job begins from: those with which a run of an earlier job has ended. Its optimizer begins anew."""

    job: Annotated[str, Field(pattern=r"^job_[0-9A-Za-z]{1,64}$")]
    """The earlier job. It must have succeeded, and cannot be deleted before this one has ended."""
    run: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """One of its runs; left out, the chosen one, and filled in at submission."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of its model file; left out, filled in at submission. Other weights than these are never trained."""
    surgery: Annotated[tuple[Operation, ...], Field(max_length=8)] = ()
    """What is done to the weights before the first update, in this order. Each operation leaves the function of the training rows as it is, to 1e-6 of its largest
    value (1e-10 in float64); this is measured, and one that does not is undone."""


def refusals(spec: "JobSpec", shape: Sequence[Layer]) -> Iterator[Problem]:
    """What of a beginning cannot be done, as far as the spec tells."""
    if spec.begin is None:
        return
    if any(isinstance(getattr(regularizer, "lam", None), Path) for regularizer in spec.regularizers):
        yield Problem("begin", "a path begins at its strongest λ without any weights", "give the strengths as values, or leave begin out")
    for place, operation in enumerate(spec.begin.surgery):
        for reason, hint in _in_the_way(operation, spec, shape):
            yield Problem(f"begin.surgery.{place}", f"{operation.kind}: {reason}", hint)


def _in_the_way(operation: Operation, spec: "JobSpec", shape: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    """Why an operation would change the function, or have nothing to act on, and what to do."""
    model = spec.model
    if not isinstance(model, Mlp | Cnn) or len(shape) == 1:
        yield f"a {model.kind} model has no hidden units that only the next layer reads", "leave it out"
        return
    if model.normalization is not None:
        yield f"{model.normalization.kind} normalization stands between the weights and the activation, and takes their scale away", "leave it out"
    if model.reparametrization is not None:
        yield f"{model.reparametrization.kind} makes the weights from other numbers", "leave it out"
    if any(layer.residual for layer in shape):
        yield "the residual path carries each unit past the layer that reads it", "leave it out"
    if isinstance(operation, Revive):
        if model.activation != "relu":
            yield f"units of {model.activation} are nowhere exactly 0, so none is dead", "leave it out"
        if isinstance(model.init, Zeros):
            yield "the init draws zeros, and such a unit never fires", "set model.init, such as he_normal"
    elif model.activation not in HOMOGENEOUS:
        yield f"{model.activation}(c·v) is not c·{model.activation}(v), so that any scale changes the function", "leave it out; it needs " + ", ".join(HOMOGENEOUS)
    if constraint := next((r.kind for r in spec.regularizers if isinstance(r, NonNegative | Box | L2Ball | MaxNorm | UnitNorm)), None):
        yield f"{constraint} would move the weights again at the first step", "leave one of them out"


def place_of(runs: Sequence[Mapping[str, Any]], run: int) -> tuple[str, int] | None:
    """Where a run's tensors lie in a model file: what their names begin with, and the place on their first axis; None where the file has no such run.

    `runs`: the runs that the file's metadata lists.
    """
    mine = next((one for one in runs if one["index"] == run), None)
    if mine is None:
        return None
    beside = [one["index"] for one in runs if one["variant"] == mine["variant"]]
    return "" if mine["variant"] is None else f"{mine['variant']}/", beside.index(run)
