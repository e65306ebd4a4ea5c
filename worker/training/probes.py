"""Looks at the loss around the weights, between updates: its noise, its curvature, what the last update was expected to gain, and histograms.

They take passes of their own over fixed rows, so they are taken at evaluations, at the first, the last, and about once in EVERY updates. The training rows are evenly
spaced among all, and the model is the one that is evaluated: no dropout, batch norm by its running averages. Penalties are left out. Nothing here
draws from a generator that training uses, and nothing is written to the pack.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from regtrain.contract.series import BINS, HIGHEST, LOWEST
from worker.training.draws import generator
from worker.training.evaluate import NUMBERS, Part
from worker.training.losses import averaged
from worker.training.losses import loss as loss_of
from worker.training.losses import size as size_of
from worker.training.models import Net, backward, forward
from worker.training.norms import norm, product
from worker.training.pack import Pack

EVERY = 256
"""Updates between two looks, at least."""
ROWS, PARTS = 256, 8
"""Rows of a probe, and the micro-batches that its gradient is the mean of."""
PRODUCTS = 10
"""Hessian-vector products of one look at the curvature."""

Batch = tuple[Tensor, Tensor, int]
"""Rows and targets of an update, and its step."""


def due(done: int, *, per_epoch: int, steps: int) -> bool:
    """Whether the evaluation after `done` of `steps` updates is one to look at: the first, the first behind every multiple of EVERY, the last."""
    return done == 0 or done // EVERY > (done - per_epoch) // EVERY or done + per_epoch > steps


def followed(*, per_epoch: int, steps: int) -> bool:
    """Whether any of these evaluations stands between two updates."""
    return any(due(done, per_epoch=per_epoch, steps=steps) for done in range(per_epoch, steps, per_epoch))


@torch.no_grad()
def probe(pack: Pack, train: Part, val: Part, last: Batch | None, following: Batch | None) -> dict[str, Tensor]:
    """All of them at the weights as they are.  -> (R,), (R, L) or (R, L, bins) each; those of the last update, and of it and the following one, only where there are such"""
    rows = spaced(pack, train)
    parts = gradients(pack, rows)
    mean = parts.mean(0)
    measured = {**noise(parts, rows=len(rows)), "curvature/sharpness": sharpness(pack, rows, mean)}
    if len(val):
        other = gradients(pack, spaced(pack, val)).mean(0)
        lengths = norm(mean) * norm(other)
        measured["gradient/validation_cosine"] = torch.where(lengths == 0, 0.0, product(mean, other).double() / lengths)
    measured |= {"histogram/weight": histograms(pack, pack.flat), "histogram/gradient": histograms(pack, mean)}
    if last is not None:
        before = as_seen(pack, pack.flat.double() - pack.update.double(), *last)
        measured |= {**decrease(pack, before, *last), "histogram/update": histograms(pack, pack.update)}
        if following is not None:
            measured["gradient/successive_cosine"] = cosines(pack, before.gradient, as_seen(pack, pack.flat.double(), *following).gradient)
    return measured


def spaced(pack: Pack, part: Part) -> Part:
    """ROWS rows, or fewer where there are no more or where a row has many signals; evenly spaced, as many in each micro-batch."""
    count = min(ROWS, len(part), max(PARTS, NUMBERS // sum(math.prod(layer.signal) for layer in pack.shape)))
    count -= count % min(PARTS, count)
    rows = torch.arange(count, device=part.x.device) * len(part) // count
    own = part.rows(rows)
    return Part(pack.per_fold(own.x), pack.per_fold(own.y))


def gradients(pack: Pack, rows: Part) -> Tensor:
    """Of each micro-batch's share of the loss, scaled so that their mean is the gradient of the mean loss over all rows.  -> (parts, R, P)"""
    parts = min(PARTS, len(rows))
    whole = size_of(pack.spec.loss, rows.y, pack.class_weights)
    whole = whole // parts if isinstance(whole, int) else whole / parts
    found = torch.empty(parts, *pack.flat.shape, dtype=pack.dtype, device=pack.device)
    running = pack.layout.buffer_views(pack.buffers) or None
    for own, x, y in zip(found, rows.x.chunk(parts, -2), rows.y.chunk(parts, -1), strict=True):
        net = replace(pack.net, gradients=pack.layout.views(own))
        trace = forward(net, x, running=running)
        _, slope = averaged(*loss_of(pack.spec.loss, trace.outputs, y, smoothing=pack.smoothing, weights=pack.class_weights), whole)
        backward(net, trace, slope, add=False)
    return found


def noise(parts: Tensor, *, rows: int) -> dict[str, Tensor]:
    """The simple noise scale tr Σ/‖G‖² (McCandlish et al. 2018, appendix A), Σ the covariance of one row's gradient, G their mean.

    Both are unbiased, from E‖g_b‖² = ‖G‖² + tr Σ/b at two sizes b: of a micro-batch, and of all. The difference may be negative where rows are too
    few to tell G from noise, and the scale is infinite there. One micro-batch tells nothing.
    """
    if len(parts) < 2:
        return {}
    small, large = rows // len(parts), rows
    of_small = torch.stack([norm(g).square() for g in parts]).mean(0)
    of_large = norm(parts.mean(0)).square()
    trace = (of_small - of_large) / (1 / small - 1 / large)
    squared = of_large - trace / large
    return {"noise/trace": trace, "noise/gradient": squared, "noise/scale": torch.where(squared > 0, trace / squared, math.inf)}


def sharpness(pack: Pack, rows: Part, gradient: Tensor) -> Tensor:
    """The largest eigenvalue of the Hessian of the mean loss over `rows`: the largest Ritz value of a few Lanczos steps, never above it but by rounding.  -> (R,)

    They start between the gradient, which lies mostly in the steepest directions, and a direction drawn from the seeds of job and run.
    """
    drawn = {seed: torch.randn(pack.flat.shape[1], generator=generator(pack.spec.seed, seed, "curvature"), dtype=torch.float64) for seed in pack.seeds}
    start = torch.stack([drawn[run.seed] for run in pack.runs]).to(pack.device)
    running = pack.layout.buffer_views(pack.buffers) or None
    curve = Curve(pack, pack.flat, rows.x, rows.y, running=running)
    diagonal, beside = _lanczos(curve, _unit(_unit(gradient) + _unit(start.to(pack.dtype))), steps=min(PRODUCTS, pack.flat.shape[1]))
    whole = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    sound = torch.isfinite(whole).all(2).all(1)
    largest = torch.linalg.eigvalsh(torch.where(sound[:, None, None], whole, 0.0).cpu())[:, -1].to(pack.device)
    return torch.where(sound, largest, math.nan)


def as_seen(pack: Pack, weights: Tensor, x: Tensor, y: Tensor, t: int) -> "Curve":
    """The loss of the batch of update t as that update sees it, with its dropout, and batch norm by the batch. In float64."""
    kept = {place: factor.double() for place, factor in (pack.kept(t, y.shape[-1]) or {}).items()}
    return Curve(pack, weights, x.double(), y.double() if y.is_floating_point() else y, kept=kept)


def decrease(pack: Pack, before: "Curve", x: Tensor, y: Tensor, t: int) -> dict[str, Tensor]:
    """What update t has taken from the loss of its own batch, and what was to be expected: −⟨g, Δ⟩, and with the curvature −⟨g, Δ⟩ − ½ΔᵀHΔ.

    In float64, or little would be left of a difference between two losses. `before`: at the weights before the update.
    """
    moved, after = pack.update.double(), as_seen(pack, pack.flat.double(), x, y, t)
    first = -product(before.gradient, moved)
    return {"decrease/expected": first, "decrease/quadratic": first - product(before(moved), moved) / 2, "decrease/actual": before.loss - after.loss}


def cosines(pack: Pack, a: Tensor, b: Tensor) -> Tensor:
    """Of every layer's weight tensor the cosine between two gradients, 0 where one of them is 0.  (R, P) each -> (R, L)"""
    found: list[Tensor] = []
    for slot in pack.layout.weights:
        one, other = a[:, slot.start : slot.stop], b[:, slot.start : slot.stop]
        lengths = norm(one) * norm(other)
        found.append(torch.where(lengths == 0, 0.0, product(one, other).double() / lengths))
    return torch.stack(found, 1)


def histograms(pack: Pack, numbers: Tensor) -> Tensor:
    """Of every layer's weight tensor.  (R, P) -> (R, L, bins) int64"""
    return torch.stack([histogram(numbers[:, slot.start : slot.stop]) for slot in pack.layout.weights], 1)


class Curve:
    """The mean loss of every run at some weights (R, P), and its derivatives by autograd: called with a direction (R, P), it is the Hessian's product with it."""

    def __init__(self, pack: Pack, weights: Tensor, x: Tensor, y: Tensor, *, kept: Mapping[str, Tensor] | None = None, running: Mapping[str, Tensor] | None = None) -> None:
        self.pack, self.weights, self.x, self.y, self.kept, self.running = pack, weights, x, y, kept, running
        self.smoothing = None if pack.smoothing is None else pack.smoothing.to(weights.dtype)
        self.class_weights = None if pack.class_weights is None else pack.class_weights.to(weights.dtype)
        self.rows = size_of(pack.spec.loss, y, self.class_weights)

    @property
    def loss(self) -> Tensor:
        """(R,) float64"""
        return self._loss(replace(self.pack.net, tensors=self.pack.layout.views(self.weights))).double()

    @cached_property
    def gradient(self) -> Tensor:
        """(R, P)"""
        return torch.cat([slope.detach().flatten(1) for slope in self._slopes], 1)

    def __call__(self, direction: Tensor) -> Tensor:
        bent = [(slope, along) for slope, along in zip(self._slopes, self.pack.layout.views(direction).values(), strict=True) if slope.requires_grad]
        if not bent:
            return torch.zeros_like(direction)
        found = torch.autograd.grad([b[0] for b in bent], list(self._leaves.values()), [b[1] for b in bent], retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten(1) for part in found], 1)

    @cached_property
    def _leaves(self) -> dict[str, Tensor]:
        return {name: view.detach().requires_grad_() for name, view in self.pack.layout.views(self.weights).items()}

    @cached_property
    def _slopes(self) -> tuple[Tensor, ...]:
        """The gradient of every tensor, with autograd's graph behind it."""
        with torch.enable_grad():
            loss = self._loss(replace(self.pack.net, tensors=self._leaves))
            return torch.autograd.grad(loss.sum(), list(self._leaves.values()), create_graph=True)

    def _loss(self, net: Net) -> Tensor:
        outputs = forward(net, self.x, kept=self.kept, running=self.running).outputs
        return loss_of(self.pack.spec.loss, outputs, self.y, smoothing=self.smoothing, weights=self.class_weights)[0] / self.rows


def _lanczos(curve: Curve, start: Tensor, *, steps: int) -> tuple[Tensor, Tensor]:
    """The diagonal (R, steps) and off-diagonal (R, steps − 1) of the Hessian in the space that its powers make of `start`, in float64.

    Only the last two vectors are kept: what is lost of orthogonality shows as copies of the largest eigenvalues, which do not move them.
    """
    before, own, length = torch.zeros_like(start), start, torch.zeros_like(start[:, :1])
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(steps):
        bent = curve(own)
        along = product(bent, own)
        rest = bent - along.to(own.dtype).unsqueeze(1) * own - length * before
        diagonal.append(along.double())
        beside.append(norm(rest))
        length = beside[-1].to(own.dtype).unsqueeze(1)
        before, own = own, _unit(rest)
    return torch.stack(diagonal, 1), torch.stack(beside[:-1], 1) if steps > 1 else start.new_zeros(len(start), 0, dtype=torch.float64)


def _unit(x: Tensor) -> Tensor:
    """Of length 1, or 0."""
    length = norm(x).to(x.dtype).unsqueeze(1)
    return torch.where(length == 0, 0.0, x / length)


def histogram(x: Tensor) -> Tensor:
    """How many of each row's numbers lie in each of the BINS.  (R, n) -> (R, bins) int64"""
    exponent = (torch.frexp(x).exponent - 1).clamp(LOWEST, HIGHEST).long()
    middle = HIGHEST - LOWEST + 1
    place = torch.where(x < 0, HIGHEST - exponent, middle + 1 + exponent - LOWEST)
    place = torch.where(x == 0, middle, place)
    place = torch.where(torch.isfinite(x), place, len(BINS) - 1)
    return torch.zeros(len(x), len(BINS), dtype=torch.int64, device=x.device).scatter_add_(1, place, torch.ones_like(place))
