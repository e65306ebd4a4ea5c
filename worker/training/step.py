"""One update of a pack, in the documented order. No host synchronisation, no shape that depends on data.

A run that has stopped, or whose loss or gradient is not finite, takes an update of exactly zero: its rate is masked, and so is its direction.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from regtrain.contract.diagnostics import includes, reads
from regtrain.contract.models import BatchNorm
from regtrain.contract.optimizers import Lbfgs, Proximal
from regtrain.contract.regularizers import WeightDecay
from worker.training import diagnostics, reparametrized
from worker.training.activations import of_activations
from worker.training.diagnostics import Measured, Reading
from worker.training.losses import averaged
from worker.training.losses import loss as loss_of
from worker.training.losses import size as size_of
from worker.training.models import Moments, Passed, backward, forward
from worker.training.optimizers import clipped
from worker.training.pack import Pack
from worker.training.regularizers import is_coupled, shortened
from worker.training.solvers import Objective, lbfgs_step, proximal_step
from worker.training.vanishing import Vanishing, vanishing

ORDER = (
    "gather", "forward", "loss", "backward", "accumulate", "finite check", "gradient statistics", "coupled penalties", "clip",
    "optimizer direction", "step penalty", "decoupled decay", "update", "prox", "projection", "weight statistics",
)  # fmt: skip
"""What happens in a step, as it is echoed in the result."""


_Term = tuple[str, Tensor, bool, Callable[[], list[Tensor]], list[slice]]
"""Of a penalty: its series, λR (R,), whether it joins the gradient, λ∇R, and in which columns."""


@torch.no_grad()
def step(pack: Pack, x: Tensor, y: Tensor, *, t: int, lr: Tensor, look: bool = False) -> tuple[Measured, Reading | None]:
    """Update t of every living run, in place.  x: (B, features) or (R, B, features); y: (B,) or (R, B); lr: (R, 1). `look`: measure what is measured once an epoch, too.

    Returns what was measured, (R,) or one (R,) a layer for each series, and what is left for instruments that reduce many updates at once: None where the
    layers are not read in this update. Where a run fails they are, if the host can know it without waiting.
    `alive` says which runs took part, `active` which of them moved.
    """
    preset, rows, on_cpu = pack.spec.diagnostics, y.shape[-1], pack.device.type == "cpu"
    loss, layers, deltas, moments, omega = _backward(pack, x, y, t)
    gradient, alive = pack.gradient, pack.alive
    active = alive & torch.isfinite(loss + gradient.sum(1))
    everyone = on_cpu and bool(active.all())  # on a CPU asking is cheaper than masking
    fails = on_cpu and not everyone and bool((alive != active).any())
    read = includes(preset, "light") and (fails or reads(preset, t))
    measured: Measured = {"alive": alive, "active": active, "loss/train": loss}
    sides = _signals(pack, layers, deltas, measured, look=look) if (read or look) and includes(preset, "standard") else []
    measured |= diagnostics.of_identities(preset, pack, moments[0] if pack.spec.budget.accumulate == 1 else None)
    for of_part in moments:
        _average(pack, of_part, active)
    gradient, penalties = _with_penalties(pack, gradient, loss, omega, measured, watch=read and includes(preset, "standard"))
    reading = diagnostics.read(pack, rows, sides, penalties) if read else None
    room = pack.room(rows, waits=reading is not None)
    if pack.spec.clip is not None and pack.limit is not None:
        gradient, changed = clipped(pack.spec.clip, gradient, pack.limit)
        measured |= {"gradient/clipped": changed} if includes(preset, "light") else {}
    if isinstance(pack.spec.optimizer, Proximal | Lbfgs):
        _solve(pack, gradient.clone(), measured, active.unsqueeze(1), _smooth(pack, x, y), room=room)
    else:
        _update(pack, gradient, None if everyone else active.unsqueeze(1), lr, measured, room=room)
    if reading is not None:
        diagnostics.read_update(pack, reading)
    if pack.spec.on_nonfinite == "stop":
        pack.alive = active
    if "converged" in pack.directions.state:
        pack.alive = pack.alive & (pack.directions.state["converged"] == 0).squeeze(1)
    return measured, reading


def _backward(pack: Pack, x: Tensor, y: Tensor, t: int) -> tuple[Tensor, list[list[Passed]], list[list[Tensor]], list[Moments], Vanishing | None]:
    """Mean loss of each run (R,), its gradient into `pack.gradient`, of every micro-batch what passed every layer, forward and back, and batch norm's moments, and Ω."""
    rows, spec = y.shape[-1], pack.spec
    reparametrized.iterate(pack.shape, pack.net.tensors, pack.net.buffers, pack.alive)
    kept = pack.kept(t, rows)
    size, whole = math.ceil(rows / spec.budget.accumulate), size_of(spec.loss, y, pack.class_weights)
    if size == rows:
        trace = forward(pack.net, x, kept=kept)
        loss, slope = averaged(*loss_of(spec.loss, trace.outputs, y, smoothing=pack.smoothing, weights=pack.class_weights), whole)
        layers, back, moments = [trace.layers], [backward(pack.net, trace, slope, add=False)], [trace.moments]
    else:
        parts = [_micro(pack, x, y, kept, slice(first, first + size), whole) for first in range(0, rows, size)]
        layers, back, moments = [p[1] for p in parts], [p[2] for p in parts], [p[3] for p in parts]
        loss = torch.stack([p[0] for p in parts]).sum(0)
    return loss, layers, back, moments, _omega(pack, layers, back, rows)


def _omega(pack: Pack, layers: list[list[Passed]], deltas: list[list[Tensor]], rows: int) -> Vanishing | None:
    return None if pack.omega is None else vanishing(pack.net, layers, deltas, lam=pack.omega.lam, rows=rows)


def _signals(pack: Pack, layers: list[list[Passed]], deltas: list[list[Tensor]], measured: Measured, *, look: bool) -> list[Tensor]:
    """Both sides of every layer, of the whole batch; what is counted in them, and at time steps, is `measured`. Both lists: of every micro-batch, of every layer."""
    preset, back = pack.spec.diagnostics, _whole(deltas)
    sides = _whole([[passed.signal for passed in part] for part in layers]) + back
    if includes(preset, "full"):
        sides += _whole([[part[-1].input] for part in layers])
        measured |= of_activations(preset, pack, layers)
    if look:
        measured |= diagnostics.of_time(pack.shape, back)
    return sides


def _micro(pack: Pack, x: Tensor, y: Tensor, kept: dict[str, Tensor] | None, part: slice, whole: Tensor | int) -> tuple[Tensor, list[Passed], list[Tensor], Moments]:
    """One micro-batch of a batch whose size is `whole`: its share of the loss, its signals forward and backward; its gradient is added to those before."""
    some = None if kept is None else {place: mask[:, part] for place, mask in kept.items()}
    trace = forward(pack.net, x[..., part, :], kept=some)
    loss, slope = averaged(*loss_of(pack.spec.loss, trace.outputs, y[..., part], smoothing=pack.smoothing, weights=pack.class_weights), whole)
    deltas = backward(pack.net, trace, slope, add=part.start > 0)
    return loss, trace.layers, deltas, trace.moments


def _whole(parts: list[list[Tensor]]) -> list[Tensor]:
    """Micro-batches as one batch, tensor by tensor: rows are the second axis of dense signals and the first of images."""
    return parts[0] if len(parts) == 1 else [torch.cat(same, 1 if same[0].dim() == 3 else 0) for same in zip(*parts, strict=True)]


def _average(pack: Pack, moments: Moments, active: Tensor) -> None:
    """Running averages of batch norm, the variance unbiased as in torch; runs that do not move keep theirs.  active: (R,)"""
    views = pack.layout.buffer_views(pack.buffers)
    for layer in pack.shape:
        if layer.name in moments:
            mean, variance, count = moments[layer.name]
            assert isinstance(layer.normalization, BatchNorm)
            for name, batch in (("running_mean", mean), ("running_var", variance * (count / max(1, count - 1)))):
                running = views[f"{layer.name}.norm.{name}"]
                running.copy_(torch.where(active.unsqueeze(1), running.lerp(batch, layer.normalization.momentum), running))


def _with_penalties(pack: Pack, gradient: Tensor, loss: Tensor, omega: Vanishing | None, measured: Measured, *, watch: bool) -> tuple[Tensor, Tensor | None]:
    """The ledger of every penalty, the gradient with λ∇R of the coupled ones, analytic, at the weights of the loss, and with `watch` λ∇R of them all."""
    terms: list[_Term] = [(p.name, p.value(pack.flat), is_coupled(p.spec), partial(p.gradients, pack.flat), p.columns) for p in pack.penalties]
    if omega is not None and pack.omega is not None:
        terms.append((pack.omega.name, omega.value, True, lambda: omega.gradients, pack.omega.columns))
    if not terms:
        return gradient, None
    objective, added, total = loss, gradient, None
    for name, value, coupled, gradients, columns in terms:
        measured[name] = value
        objective = objective + value
        if not (coupled or watch):
            continue
        own = gradients()
        if coupled:
            added = gradient.clone() if added is gradient else added
            _add(added, own, columns)
        if watch and columns == [slice(0, pack.other_start)] and total is None:
            total = own[0]
        elif watch:
            everything = torch.zeros_like(gradient)
            if total is not None:
                everything[:, : total.shape[1]] = total
            total = _add(everything, own, columns)
    measured["objective/train"] = objective
    return added, total


def _add(whole: Tensor, parts: list[Tensor], columns: list[slice]) -> Tensor:
    for part, c in zip(parts, columns, strict=True):
        whole[:, c] += part
    return whole


def _update(pack: Pack, gradient: Tensor, active: Tensor | None, lr: Tensor, measured: Measured, *, room: Tensor | None) -> None:
    """Direction, step penalty, decoupled decay, update, prox and projection; nothing moves where `active` (R, 1) is false. None: all runs move."""
    direction, factor = _direction(pack, gradient, active)
    rate = lr
    if active is not None:
        rate, direction, factor = torch.where(active, lr, 0.0), torch.where(active, direction, 0.0), torch.where(active, factor, 0.0)
    if pack.step_penalty is not None:
        alpha, squared = pack.step_penalty
        direction = shortened(direction, alpha=alpha, lr=lr, squared=squared)
        moved = torch.linalg.vector_norm(rate * direction, dim=1)
        measured["penalty/step_penalty"] = alpha.squeeze(1) * (0.5 * moved.square() if squared else moved)
    pack.update = torch.mul(direction, -rate, out=room)
    if not pack.reshapes:
        pack.flat.add_(pack.update)
        return
    after = _decayed(pack, pack.update, rate, factor)
    if pack.bounds and active is not None:  # a projection moves weights that no rate holds still
        after = torch.where(active, after, pack.flat)
    pack.update = torch.sub(after, pack.flat, out=room)
    pack.flat.copy_(after)


def _smooth(pack: Pack, x: Tensor, y: Tensor) -> Objective:
    """Loss and coupled penalties of the whole batch, and their gradient, at any weights. The pack's own come back."""
    rows = y.shape[-1]
    size, whole = math.ceil(rows / pack.spec.budget.accumulate), size_of(pack.spec.loss, y, pack.class_weights)

    def at(point: Tensor) -> tuple[Tensor, Tensor]:
        own = pack.flat.clone()
        pack.flat.copy_(point)
        value = torch.stack([_micro(pack, x, y, None, slice(first, first + size), whole)[0] for first in range(0, rows, size)]).sum(0)
        gradient = pack.gradient.clone()
        for p in pack.penalties:
            if is_coupled(p.spec):
                value = value + p.value(pack.flat)
                _add(gradient, p.gradients(pack.flat), p.columns)
        pack.flat.copy_(own)
        return value, gradient

    return at


def _solve(pack: Pack, gradient: Tensor, measured: Measured, active: Tensor, smooth: Objective, *, room: Tensor | None) -> None:
    """One update of an optimizer that chooses its own steps; runs that are not `active` (R, 1) keep their weights and its state."""
    state, idle = dict(pack.directions.state), ~active
    value = measured.get("objective/train", measured["loss/train"])
    assert isinstance(value, Tensor)
    match pack.spec.optimizer:
        case Proximal() as spec:
            after, steps, left = proximal_step(spec, pack.directions, pack.flat, gradient, smooth, pack.settled, curvature=pack.curvature, idle=idle)
        case Lbfgs() as spec:
            left = gradient.abs().amax(1, keepdim=True)
            after, steps = lbfgs_step(spec, pack.directions, pack.flat, value, gradient, smooth, idle=idle)
        case other:
            raise TypeError(f"{other.kind} takes the steps that it is given")
    if spec.tolerance:
        reach = left.double() * after.abs().sum(1, keepdim=True, dtype=torch.float64)
        pack.directions.state["converged"] = (reach <= spec.tolerance * value.abs().unsqueeze(1)).to(after.dtype)
    for name, before in state.items():
        now = pack.directions.state[name]
        pack.directions.state[name] = torch.where(active.view(-1, *[1] * (now.dim() - 1)), now, before)
    after = torch.where(active, after, pack.flat)
    pack.update = torch.sub(after, pack.flat, out=room)
    pack.flat.copy_(after)
    measured["learning_rate"] = steps.squeeze(1)


def _direction(pack: Pack, gradient: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
    """The optimizer's direction and prox factor. With `skip_step` a run that does not move keeps the optimizer's state too."""
    keep = active is not None and pack.spec.on_nonfinite == "skip_step"
    state = {name: tensor.clone() for name, tensor in pack.directions.state.items()} if keep else {}
    found = pack.directions(gradient)
    for name, before in state.items():
        now = pack.directions.state[name]
        now.copy_(torch.where(active, now, before))  # pyright: ignore[reportArgumentType, reportCallIssue] - `keep` implies it
    return found


def _decayed(pack: Pack, update: Tensor, rate: Tensor, factor: Tensor) -> Tensor:
    """The new weights under decoupled decay, proximal penalties and constraints.  (R, P)"""
    weights = pack.flat.clone()
    for p in pack.penalties:
        if isinstance(p.spec, WeightDecay):
            for c in p.columns:
                weights[:, c] *= 1 - rate * p.lam
    weights += update
    return pack.settled(weights, rate * factor)
