"""A strength that changes while its run trains, once an epoch, and what it has come to."""

from collections.abc import Callable
from math import exp, isfinite, log
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from regtrain.contract.optimizers import Sgd
from regtrain.contract.ranges import Adapt, concrete
from regtrain.contract.regularizers import L2
from regtrain.contract.runs import Run
from worker.training.followed import ImplicitGradient, LaplaceEvidence, Look, RidgeEvidence, RidgeHeldOut, decomposed, followed
from worker.training.pack import Pack
from worker.training.prepare import Job
from worker.training.ridge import Ridge

RATE, MEAN, SQUARE, EPS = 0.05, 0.9, 0.999, 1e-8
"""Adam on ln λ (Kingma & Ba 2015)."""
STILL = 1e-3
"""A strength that follows the evidence has settled when an update changes ln λ by less."""
NEAR = 1e-2
"""A strength that follows the validation loss has settled when its minimum in ln λ is nearer, by Newton's method."""
LOOSE, TIGHT = 0.01, 0.9
"""Beyond these shares a strength holds next to nothing, or next to everything."""

Verdict = Literal["settled", "ran away to 0", "ran away to infinity", "not settled"]


class Adapting:
    """The strength of every run of a pack whose spec lets it adapt; nothing where it does not."""

    def __init__(self, job: Job, pack: Pack, solved: Ridge | None = None) -> None:
        """`solved`: the training rows of a ridge, where they have been decomposed already."""
        self.pack = pack
        self.penalty = next((p for p in pack.penalties if isinstance(p.spec.lam, Adapt)), None)
        self.state: dict[str, Tensor] = {}
        """Of each run: ln λ, its last change, the updates made, and for the validation loss Adam's moments.  (R,) each"""
        self.solved = solved
        if self.penalty is None:
            return
        if solved is None:
            self.solved = decomposed(job, pack)
        self.rule = followed(job, pack, self.penalty, self.solved)
        start = self.penalty.lam.squeeze(1).double().log()
        names = ("change", "updates") if isinstance(self.rule, RidgeEvidence | LaplaceEvidence) else ("change", "updates", "mean", "square")
        self.state = {"adapt/log": start} | {f"adapt/{name}": torch.zeros_like(start) for name in names}
        ends = [-log(concrete(run.spec.optimizer.lr)) if isinstance(run.spec.optimizer, Sgd) else torch.inf for run in pack.runs]
        self.most = torch.tensor(ends, dtype=torch.float64, device=pack.device)
        """ln(1/lr) under SGD: a stronger λ would make the weights themselves diverge."""

    def update(self) -> None:
        """Behind an epoch: the next strength of every run that is alive."""
        if self.penalty is None:
            return
        state = self.state
        match self.rule:
            case RidgeEvidence() | LaplaceEvidence():
                new = {"adapt/log": self.rule.following(state["adapt/log"])}
            case RidgeHeldOut() | ImplicitGradient():
                new = _downhill(state, self.rule.slope(state["adapt/log"]))
            case _:
                assert_never(self.rule)
        new["adapt/log"] = torch.minimum(new["adapt/log"], self.most)
        new |= {"adapt/change": new["adapt/log"] - state["adapt/log"], "adapt/updates": state["adapt/updates"] + 1}
        moves = self.pack.alive & torch.isfinite(new["adapt/log"])  # weights that are all zero have no evidence
        self.state = {name: torch.where(moves, new[name], state[name]) for name in state}
        self._apply()

    def strengths(self) -> dict[str, Tensor]:
        """`strength/l2`: the λ of every run.  (R,), float64"""
        return {} if self.penalty is None else {self.penalty.name.replace("penalty/", "strength/"): self.state["adapt/log"].exp()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes up the state of a checkpoint, or of a larger pack."""
        self.state = {name: state[name] for name in self.state}
        if self.penalty is not None:
            self._apply()

    def told(self, make: Callable[[list[Run]], Pack]) -> Callable[[int], dict[str, Any] | None]:
        """At the end: what has become of each run's strength. `make`: an untrained pack of given runs."""
        if self.penalty is None:
            return lambda run: None
        path, state = f"regularizers.{self.penalty.index}.lambda", {name: tensor.cpu().tolist() for name, tensor in self.state.items()}
        look = self.rule.look(self.state["adapt/log"], make)
        seen = {name: getattr(look, name).cpu().tolist() for name in Look.__dataclass_fields__}
        spec = self.penalty.spec.lam
        assert isinstance(spec, Adapt)

        def of(run: int) -> dict[str, Any]:
            own = self.pack.runs[run].spec.regularizers[self.penalty.index if self.penalty else 0]
            assert isinstance(own, L2)
            start, strength = concrete(own.lam), exp(state["adapt/log"][run])
            at_most = state["adapt/log"][run] >= float(self.most[run])
            here = {name: values[run] for name, values in seen.items()}
            verdict = _verdict(spec.adapt, change=state["adapt/change"][run], at_most=at_most, **{name: here[name] for name in ("slope", "bend", "rounding", "held")})
            updates = int(state["adapt/updates"][run])
            return {
                "path": path, "method": spec.adapt, "start": start, "strength": strength, "verdict": verdict, "in_words": _in_words(spec.adapt, verdict, start, strength, updates),
                "gradient": _finite(here["slope"]), "finite_difference": _finite(here["difference"]), "iterations": updates,
            }  # fmt: skip

        return of

    def _apply(self) -> None:
        assert self.penalty is not None
        self.penalty.lam.copy_(self.state["adapt/log"].exp().unsqueeze(1))


def _downhill(state: dict[str, Tensor], slope: Tensor) -> dict[str, Tensor]:
    """One update of Adam.  (R,) -> (R,) each"""
    mean = MEAN * state["adapt/mean"] + (1 - MEAN) * slope
    square = SQUARE * state["adapt/square"] + (1 - SQUARE) * slope.square()
    t = state["adapt/updates"] + 1
    step = RATE * mean / (1 - MEAN**t) / ((square / (1 - SQUARE**t)).sqrt() + EPS)
    return {"adapt/log": state["adapt/log"] - step, "adapt/mean": mean, "adapt/square": square}


def _verdict(method: str, *, change: float, at_most: bool, slope: float, bend: float, rounding: float, held: float) -> Verdict:
    """Along a loss that falls towards λ = 0 as L₀ + bλ, and towards infinity as L₁ + b/λ, slope and bend are equal up to sign: there Newton's step is ±1, at a minimum 0."""
    rises = change > 0
    if at_most:
        return "ran away to infinity"
    if method == "evidence" and abs(change) < STILL:
        return "settled"
    if method == "validation_gradient" and bend > rounding and abs(slope) < NEAR * bend:
        return "settled"
    if held < LOOSE and not rises:
        return "ran away to 0"
    return "ran away to infinity" if held > TIGHT and rises else "not settled"


def _in_words(method: str, verdict: Verdict, start: float, strength: float, updates: int) -> str:
    followed = "the evidence of the training rows" if method == "evidence" else "the loss on the validation rows"
    moved = f"from {start:.4g} to {strength:.4g} in {updates} updates"
    match verdict:
        case "settled":
            return f"λ went {moved} and has settled: nearby, {followed} has no better one"
        case "ran away to 0":
            return f"λ went {moved} and hardly holds the weights any more: from this start, {followed} leads towards no penalty at all; start larger"
        case "ran away to infinity":
            return f"λ went {moved}, where it leaves next to nothing of the weights: {followed} sees no signal in the features; start smaller, or look at the rows"
        case "not settled":
            return f"λ went {moved} and still moves along {followed}: train for more epochs"
        case _:
            assert_never(verdict)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
