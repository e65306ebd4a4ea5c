"""Ridge regression on given rows exactly, for every strength at once, from one singular value decomposition of the centred rows.

X = USVᵀ, z = Uᵀy: at a strength A the minimum of ‖y − Xw‖² + A‖w‖² is w = V·sz/(s² + A), and its predictions are U·f·z with the
filter f = s²/(s² + A) of each direction. Everything below is a sum over directions or rows of such numbers, in float64. Strengths are
tensors of any number G of them, in the unit of A, which is scikit-learn's `alpha`: λ = cA/n, c the curvature of the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

LARGEST_WORK = 2**34
"""Rows · columns · the fewer of both, up to which the decomposition is made: some seconds."""
PER_DECADE = 20
"""Strengths of each factor of ten that are compared before the search is refined."""
BLOCK = 32
"""Strengths for which a number of each row is held at a time."""
LEAST = 1e-12
"""Directions whose singular value is a smaller share of the largest are rounding."""


@dataclass(frozen=True)
class Ridge:
    """The rows of one problem, decomposed. k directions of d features and n rows, in falling order of s."""

    s: Tensor
    """(k,) singular values, all greater than 0."""
    u: Tensor
    """(n, k)"""
    v: Tensor
    """(d, k)"""
    z: Tensor
    """(k,) Uᵀy"""
    y: Tensor
    """(n,) targets, centred where there is an intercept."""
    mean_x: Tensor
    """(d,) of the rows, zeros without an intercept."""
    mean_y: Tensor
    intercept: bool

    @property
    def n(self) -> int:
        return len(self.y)

    def on(self, device: torch.device) -> "Ridge":
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "intercept"})

    def filters(self, a: Tensor) -> Tensor:
        """f, what is left of least squares in each direction.  (G,) -> (G, k)"""
        return self.s.square() / (self.s.square() + a.unsqueeze(-1))

    def freedom(self, a: Tensor) -> Tensor:
        """γ = Σf, the effective degrees of freedom without the intercept's own.  (G,) -> (G,)"""
        return self.filters(a).sum(-1)

    def weights(self, a: Tensor) -> Tensor:
        """(G,) -> (G, d)"""
        return self._along(a) @ self.v.T

    def weights_squared(self, a: Tensor) -> Tensor:
        """‖w‖².  (G,) -> (G,)"""
        return self._along(a).square().sum(-1)

    def squares(self, a: Tensor) -> Tensor:
        """‖y − Xw‖², the part of y outside of all directions included.  (G,) -> (G,)"""
        return (self.y - self.u @ self.z).square().sum() + (self.z * (1 - self.filters(a))).square().sum(-1)

    def held(self, a: Tensor) -> Tensor:
        """‖dw/d ln A‖/‖w‖: 0 where the strength holds nothing, 1 where it alone sets the length of the weights.  (G,) -> (G,)"""
        along = self._along(a)
        return (along * (1 - self.filters(a))).square().sum(-1).sqrt() / along.square().sum(-1).sqrt()

    def _along(self, a: Tensor) -> Tensor:
        """Vᵀw.  (G, k)"""
        return self.s * self.z / (self.s.square() + a.unsqueeze(-1))


def decomposed(x: Tensor, y: Tensor, *, intercept: bool) -> Ridge | None:
    """x: (n, d), y: (n,) -> on the CPU; None where it is too large, or where no column varies."""
    if x.shape[0] * x.shape[1] * min(x.shape) > LARGEST_WORK:
        return None
    x, y = x.cpu().double(), y.cpu().double()
    mean_x, mean_y = (x.mean(0), y.mean()) if intercept else (torch.zeros(x.shape[1], dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    u, s, v = torch.linalg.svd(x - mean_x, full_matrices=False)
    rank = int((s > LEAST * s.max()).sum()) if len(s) else 0
    u, s, v, y = u[:, :rank], s[:rank], v[:rank].T, y - mean_y
    return Ridge(s, u, v, u.T @ y, y, mean_x, mean_y, intercept) if rank else None


# ---------------------------------------------------------------- what says how strong


def leave_one_out(of: Ridge, a: Tensor) -> Tensor:
    """Mean over rows of (rᵢ/(1 − hᵢ))², the squared error at each row of the fit without it; h = diag(U f Uᵀ), and 1/n for the intercept (Allen 1974). Inf where a
    row decides its own prediction.  (G,) -> (G,)
    """
    parts: list[Tensor] = []
    for block in a.split(BLOCK):
        filters = of.filters(block)
        residual = of.y - (filters * of.z) @ of.u.T
        left = 1 - filters @ of.u.square().T - of.intercept / of.n
        parts.append(torch.where(left > 1e-9, residual / left, torch.inf).square().mean(-1))
    return torch.cat(parts)


def generalized(of: Ridge, a: Tensor) -> Tensor:
    """Generalized cross-validation: mean r²/(1 − (γ + 1)/n)², without the 1 where there is no intercept (Golub, Heath & Wahba 1979).  (G,) -> (G,)"""
    left = 1 - (of.freedom(a) + of.intercept) / of.n
    return torch.where(left > 1e-9, of.squares(a) / of.n / left.square(), torch.inf)


def log_evidence(of: Ridge, a: Tensor) -> Tensor:
    """ln p(y | A), y = Xw + noise, w normal with 1/A of the noise's variance, which is at its most likely value; the intercept is the mean (MacKay 1992).  (G,) -> (G,)

    −n/2·(ln(2πQ/n) + 1) − ½ Σ ln((s² + A)/A), Q = ‖y − Xw‖² + A‖w‖².
    """
    q = of.squares(a) + a * of.weights_squared(a)
    return -0.5 * of.n * ((2 * torch.pi * q / of.n).log() + 1) - 0.5 * torch.log1p(of.s.square() / a.unsqueeze(-1)).sum(-1)


def log_evidence_slope(of: Ridge, a: Tensor) -> Tensor:
    """d ln p(y | A)/d ln A = ½(γ − nA‖w‖²/Q): 0 at MacKay's fixed points.  (G,) -> (G,)"""
    held = a * of.weights_squared(a)
    return 0.5 * (of.freedom(a) - of.n * held / (of.squares(a) + held))


def mackay(of: Ridge, a: Tensor) -> Tensor:
    """The next A of MacKay's iteration, with flat hyperpriors: weight precision γ/‖w‖² over noise precision (n − γ)/‖y − Xw‖².  (G,) -> (G,)"""
    freedom = of.freedom(a)
    return freedom * of.squares(a) / (of.weights_squared(a) * (of.n - freedom))


@dataclass(frozen=True)
class HeldOut:
    """The loss on other rows, as a function of the strength it was fitted with."""

    of: Ridge
    x: Tensor
    """(m, k) the rows along the directions."""
    y: Tensor
    """(m,) centred as the training rows are."""

    def loss(self, a: Tensor) -> Tensor:
        """Mean squared error.  (G,) -> (G,)"""
        return (self.y - self.of._along(a) @ self.x.T).square().mean(-1)  # pyright: ignore[reportPrivateUsage] - both are this module's

    def slope(self, a: Tensor) -> Tensor:
        """d loss/d ln A; of 1/(s² + A) it is −A/(s² + A)².  (G,) -> (G,)"""
        along = self.of._along(a)  # pyright: ignore[reportPrivateUsage]
        moves = -a.unsqueeze(-1) / (self.of.s.square() + a.unsqueeze(-1)) * along
        return -2 * ((self.y - along @ self.x.T) * (moves @ self.x.T)).mean(-1)


def held_out(of: Ridge, x: Tensor, y: Tensor) -> HeldOut:
    """x: (m, d), y: (m,), as they are: the means of the training rows are taken off."""
    return HeldOut(of, (x.to(of.v) - of.mean_x) @ of.v, y.to(of.v) - of.mean_y)


# ---------------------------------------------------------------- the best strength


@dataclass(frozen=True)
class Best:
    """Where a score is lowest. `a` is 0 or infinite where it falls towards that end of everything that makes a difference."""

    a: float
    score: float


def lowest(of: Ridge, score: Callable[[Tensor], Tensor]) -> Best:
    """The lowest of all minima of a score: by a grid over all strengths that make a difference, from 1e-6 of the smallest s² to 1e6 of the largest, then by bounded search."""
    from scipy.optimize import minimize_scalar  # takes a third of a second to import

    low, high = float(of.s[-1].square().log10()) - 6, float(of.s[0].square().log10()) + 6
    grid = torch.logspace(low, high, max(3, round((high - low) * PER_DECADE)), dtype=torch.float64)
    scores = torch.nan_to_num(score(grid), nan=torch.inf)
    place = int(scores.argmin())
    if place in (0, len(grid) - 1):
        return Best(0.0 if place == 0 else float("inf"), float(scores[place]))

    def at(log: float) -> float:
        return float(score(torch.tensor([log], dtype=torch.float64).exp())[0])

    found = minimize_scalar(at, bounds=(float(grid[place - 1].log()), float(grid[place + 1].log())), method="bounded", options={"xatol": 1e-10})
    return Best(float(torch.tensor(found.x, dtype=torch.float64).exp()), float(found.fun))
