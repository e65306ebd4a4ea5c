"""One strength in every convention: what λ is in scikit-learn, glmnet, torch, Keras and the articles, for the same minimum.

Objectives that differ by a constant factor have the same minimum. So every convention is brought to one coin, κ: the strength per
example of `mean ½(y − f)² + κ·R(w)` for squared losses and of `mean loss + κ·R(w)` for the others, with R = Σ|w| (L1) or ½Σw² (L2).
A convention's own strength s is a monomial of it: κ = number · rows^a · deviation^b · s, or of 1/s where a larger number means less.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Annotated, Literal

from pydantic import Field

from regtrain.contract.base import Part
from regtrain.contract.datasets import Facts, counts
from regtrain.contract.errors import Problem, SpecRefused
from regtrain.contract.job import JobSpec
from regtrain.contract.losses import Binary, CrossEntropy
from regtrain.contract.optimizers import Sgd
from regtrain.contract.ranges import concrete, values_of
from regtrain.contract.regularizers import L1, L2, ElasticNet, WeightDecay

Loss = Literal["squared_error", "half_squared_error", "cross_entropy", "binary"]
Penalty = Literal["l1", "l2", "elastic_net"]
OnePart = Literal["l1", "l2"]
Positive = Annotated[float, Field(gt=0)]


class Question(Part):
    """A strength in one convention, and what has to be known to say it in the others."""

    convention: Annotated[str, Field(max_length=100)]
    """Whose strength it is, such as `regtrain`, `sklearn_ridge`, `keras`."""
    strength: Annotated[float, Field(ge=0)]
    """The number as that convention has it."""
    loss: Loss
    """The loss beside which the penalty stands. Squared losses are of one output."""
    penalty: Penalty = "l2"
    """Σ|w|, ½Σw², or both."""
    l1_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """The share of the L1 part of an elastic net, as the convention has it."""
    rows: Annotated[int, Field(ge=1, le=10**12)]
    """n, the rows that are trained on."""
    target_deviation: Positive | None = None
    """s, the population standard deviation of the targets, by which glmnet divides them."""
    classes: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """C, the classes of cross-entropy: of two, scikit-learn trains one vector where softmax has two."""


@dataclass(frozen=True)
class Factor:
    """κ = number · rows^rows · deviation^deviation · strength^power."""

    number: Fraction = Fraction(1)
    rows: int = 0
    deviation: int = 0
    power: Literal[1, -1] = 1


@dataclass(frozen=True)
class Convention:
    """Who writes it so. `l1` and `l2` are None where the convention has no such penalty; `ratio` is its name for the L1 share."""

    name: str
    title: str
    parameter: str
    losses: tuple[Loss, ...]
    objective: str
    l1: Factor | None = None
    l2: Factor | None = None
    ratio: str | None = None


@dataclass(frozen=True)
class Converted:
    """The strength in one convention. `value` is None where it is infinite, or where the targets' deviation is needed and not known."""

    convention: str
    title: str
    parameter: str
    value: float | None
    l1_ratio: float | None
    formula: str
    objective: str


SQUARED: tuple[Loss, ...] = ("squared_error", "half_squared_error")
CLASSES: tuple[Loss, ...] = ("cross_entropy", "binary")
HALF, ONE, TWO, PER_ROW = Factor(Fraction(1, 2)), Factor(), Factor(Fraction(2)), Factor(rows=-1)
INVERSE = Factor(rows=-1, power=-1)

CONVENTIONS: tuple[Convention, ...] = (
    Convention("regtrain_squared_error", "regtrain, squared_error", "lambda", SQUARED, "mean (y − f)² + λ·R(w)", HALF, HALF, "l1_ratio"),
    Convention("regtrain_half_squared_error", "regtrain, half_squared_error", "lambda", SQUARED, "mean ½(y − f)² + λ·R(w)", ONE, ONE, "l1_ratio"),
    Convention("sklearn_ridge", "scikit-learn Ridge", "alpha", SQUARED, "Σ(y − f)² + alpha·Σw²", None, PER_ROW),
    Convention("sklearn_lasso", "scikit-learn Lasso", "alpha", SQUARED, "Σ(y − f)²/2n + alpha·Σ|w|", ONE),
    Convention("sklearn_elastic_net", "scikit-learn ElasticNet", "alpha", SQUARED, "Σ(y − f)²/2n + alpha·(l1_ratio·Σ|w| + (1 − l1_ratio)·½Σw²)", ONE, ONE, "l1_ratio"),
    Convention("article_003", "article 003, λ/2m", "lambda", SQUARED, "Σ(y − f)²/2m + λ/2m·Σw²", None, PER_ROW),
    Convention("article_004", "article 004, λ outside the mean", "lambda", SQUARED, "Σ(y − f)²/2m + λ/2·Σw², or + λ·Σ|w|", ONE, ONE),
    Convention("glmnet", "R's glmnet, gaussian, x as it is", "lambda", SQUARED, "Σ(y/s − f)²/2n + λ/s·(alpha·Σ|w| + (1 − alpha)·½Σw²), w·s returned", ONE, Factor(deviation=-1), "alpha"),
    Convention("torch", "torch MSELoss, with SGD's weight_decay or + λ·Σ|w|", "weight_decay", SQUARED, "mean (y − f)² + weight_decay·½Σw², or + λ·Σ|w|", HALF, HALF),
    Convention("keras", "Keras and Ludwig, mean squared error", "l1, l2", SQUARED, "mean (y − f)² + l2·Σw², or + l1·Σ|w|", HALF, ONE),
    Convention("regtrain_cross_entropy", "regtrain, cross_entropy", "lambda", ("cross_entropy",), "mean loss + λ·R(w)", ONE, ONE, "l1_ratio"),
    Convention("regtrain_binary", "regtrain, binary", "lambda", ("binary",), "mean loss + λ·R(w)", ONE, ONE, "l1_ratio"),
    Convention("sklearn_logistic", "scikit-learn LogisticRegression", "C", CLASSES, "l1_ratio·Σ|w| + (1 − l1_ratio)·½Σw² + C·Σ loss", INVERSE, INVERSE, "l1_ratio"),
    Convention("article_003", "article 003, λ/2m", "lambda", CLASSES, "Σ loss/m + λ/2m·Σw²", None, PER_ROW),
    Convention("article_004", "article 004, λ outside the mean", "lambda", CLASSES, "mean loss + λ/2·Σw², or + λ·Σ|w|", ONE, ONE),
    Convention("glmnet", "R's glmnet, binomial or multinomial as the loss, x as it is", "lambda", CLASSES, "mean loss + λ·(alpha·Σ|w| + (1 − alpha)·½Σw²)", ONE, ONE, "alpha"),
    Convention("torch", "torch cross entropy, with SGD's weight_decay or + λ·Σ|w|", "weight_decay", CLASSES, "mean loss + weight_decay·½Σw², or + λ·Σ|w|", ONE, ONE),
    Convention("keras", "Keras and Ludwig, cross entropy", "l1, l2", CLASSES, "mean loss + l2·Σw², or + l1·Σ|w|", ONE, TWO),
)  # fmt: skip
"""The table: one row a convention and family of losses."""


def convert(question: Question) -> list[Converted]:
    """The same strength in every convention that has this penalty beside this loss, the asked one included.

    Raises:
        SpecRefused: the convention has no such penalty or loss, or a number is missing.
    """
    known = list(_available(question))
    name = f"regtrain_{question.loss}" if question.convention == "regtrain" else question.convention
    asked = next((c for c in known if c.name == name), None)
    problems = list(_problems(question, asked, [c.name for c in known]))
    if problems or asked is None:
        raise SpecRefused(problems)
    coins = _coins(question, asked)
    return [_converted(question, convention, coins) for convention in known]


def of_result(spec: JobSpec, facts: Facts, values: dict[str, float]) -> dict[str, list[Converted]]:
    """Path of each strength of a run with these values → the strength in every convention.

    Decoupled decay is here where it minimises its ledger value, under SGD without momentum; what has no counterpart elsewhere is left out, and so are
    losses with given class weights, whose sum the formulas do not know (that of balanced ones is the number of rows).
    """
    if isinstance(spec.loss, CrossEntropy | Binary) and isinstance(spec.loss.class_weights, tuple):
        return {}
    rows, found = counts(spec.dataset, facts, seed=spec.seed).train, dict[str, list[Converted]]()
    for index, regularizer in enumerate(spec.regularizers):
        path = f"regularizers.{index}.lambda"
        match regularizer:
            case L1() | L2() | ElasticNet():
                pass
            case WeightDecay() if isinstance(spec.optimizer, Sgd) and values_of(spec.optimizer.momentum) == (0.0,):
                pass
            case _:
                continue
        strength = values[path] if path in values else concrete(regularizer.lam)
        share = f"regularizers.{index}.l1_ratio"
        ratio = (values[share] if share in values else concrete(regularizer.l1_ratio)) if isinstance(regularizer, ElasticNet) else None
        penalty = "l1" if isinstance(regularizer, L1) else "elastic_net" if isinstance(regularizer, ElasticNet) else "l2"
        classes = facts.classes if isinstance(spec.loss, CrossEntropy | Binary) and (facts.classes or 0) >= 2 else None
        asked = Question(convention="regtrain", strength=strength, loss=spec.loss.kind, penalty=penalty, l1_ratio=ratio, rows=rows, classes=classes)
        found[path] = convert(asked)
    return found


def _available(question: Question) -> Iterator[Convention]:
    for convention in CONVENTIONS:
        has = {"l1": convention.l1, "l2": convention.l2, "elastic_net": convention.l1 and convention.l2 and convention.ratio}
        if question.loss in convention.losses and has[question.penalty]:
            yield convention


def _problems(question: Question, asked: Convention | None, known: list[str]) -> Iterator[Problem]:
    if asked is None:
        everybody = {c.name for c in CONVENTIONS}
        reason = f"{question.convention} has no {question.penalty} beside {question.loss}" if question.convention in everybody else f"unknown convention {question.convention!r}"
        yield Problem("convention", reason, "one of regtrain, " + ", ".join(known))
    if question.penalty == "elastic_net" and question.l1_ratio is None:
        yield Problem("l1_ratio", "an elastic net has a share of L1", "add l1_ratio, from 0 (ridge) to 1 (lasso)")
    if question.penalty != "elastic_net" and question.l1_ratio is not None:
        yield Problem("l1_ratio", f"{question.penalty} has no share of L1", 'leave it out, or use "penalty": "elastic_net"')
    if question.classes is not None and question.loss in SQUARED:
        yield Problem("classes", f"{question.loss} has no classes", "leave it out")
    if question.loss == "binary" and question.classes not in (None, 2):
        yield Problem("classes", f"binary has two classes, not {question.classes}", 'leave it out, or use "loss": "cross_entropy"')
    if asked is None:
        return
    parts = [factor for kind, factor in (("l1", asked.l1), ("l2", asked.l2)) if factor and question.penalty in (kind, "elastic_net")]
    if question.target_deviation is None and any(factor.deviation for factor in parts):
        yield Problem("target_deviation", f"{asked.name} divides the targets by their deviation", "add target_deviation, the population standard deviation of y")
    if question.strength == 0 and any(factor.power < 0 for factor in parts):
        yield Problem("strength", f"{asked.parameter} must be greater than 0", f"no penalty at all is an infinite {asked.parameter}")


def _coins(question: Question, asked: Convention) -> dict[OnePart, float]:
    """κ of each part of the penalty, before its share."""
    parts: tuple[OnePart, ...] = ("l1", "l2") if question.penalty == "elastic_net" else (question.penalty,)
    factors: dict[OnePart, Factor] = {part: _factor(question, asked, part) for part in parts}
    return {part: _unit(f, question) * (question.strength if f.power > 0 else 1 / question.strength) for part, f in factors.items()}


def _converted(question: Question, convention: Convention, coins: dict[OnePart, float]) -> Converted:
    factors: dict[OnePart, Factor] = {part: _factor(question, convention, part) for part in coins}
    unknown = question.target_deviation is None and any(factor.deviation for factor in factors.values())
    sizes: dict[OnePart, float] = {part: coin / _unit(factors[part], question) for part, coin in coins.items()}
    total, ratio = _together(sizes, question.l1_ratio)
    inverse = factors[next(iter(factors))].power < 0
    value = None if unknown or (inverse and total == 0) else 1 / total if inverse else total
    parameter = _parameter(convention, question)
    return Converted(
        convention.name, convention.title, parameter, value if value is not None and isfinite(value) else None, None if unknown else ratio,
        _formula(question, convention, factors, parameter), convention.objective,
    )  # fmt: skip


def _together(sizes: dict[OnePart, float], share: float | None) -> tuple[float, float | None]:
    """Strength and share of L1 of parts that count (1 − share) and share; where both are equal, as they are, without rounding."""
    if share is None or len(set(sizes.values())) == 1:
        return next(iter(sizes.values())), share
    total = share * sizes["l1"] + (1 - share) * sizes["l2"]
    return total, share * sizes["l1"] / total


def _factor(question: Question, convention: Convention, part: OnePart) -> Factor:
    factor = convention.l1 if part == "l1" else convention.l2
    assert factor is not None
    if convention.name == "sklearn_logistic" and part == "l2" and question.loss == "cross_entropy" and question.classes == 2:
        # softmax minimises with w₁ = −w₀ = v/2, so its ½Σw² is v²/4: half of what the one vector v of scikit-learn has. Σ|w| is the same
        return Factor(number=2 * factor.number, rows=factor.rows, power=factor.power)
    return factor


def _unit(factor: Factor, question: Question) -> float:
    """κ of strength 1."""
    return float(factor.number) * float(question.rows) ** factor.rows * (question.target_deviation or 1.0) ** factor.deviation


def _parameter(convention: Convention, question: Question) -> str:
    if convention.name == "keras":
        return question.penalty
    return "lambda" if convention.name == "torch" and question.penalty == "l1" else convention.parameter


def _formula(question: Question, convention: Convention, factors: dict[OnePart, Factor], parameter: str) -> str:
    """How the parameter follows from λ, the strength that a spec of ours with this loss has."""
    own = Fraction(1, 2) if question.loss == "squared_error" else Fraction(1)
    texts = {part: _monomial(own / factor.number, -factor.rows, -factor.deviation, inverse=factor.power < 0) for part, factor in factors.items()}
    if len(set(texts.values())) == 1:
        return f"{parameter} = {next(iter(texts.values()))}"
    if next(iter(factors.values())).power < 0:
        shares = {"l1": "l1_ratio", "l2": "(1 − l1_ratio)"}
        terms = [_monomial(own / factor.number, -factor.rows, 0, inverse=False).replace("λ", f"λ·{shares[part]}", 1) for part, factor in factors.items()]
        return f"{parameter} = 1/({' + '.join(terms)}), {convention.ratio} = {terms[0]}·{parameter}"
    return f"{parameter} = {texts['l1']}·l1_ratio + {texts['l2']}·(1 − l1_ratio), {convention.ratio} = {texts['l1']}·l1_ratio/{parameter}"


def _monomial(number: Fraction, rows: int, deviation: int, *, inverse: bool) -> str:
    """number · n^rows · s^deviation · λ, or one over it."""
    if inverse:
        number = 1 / number
    sign = -1 if inverse else 1
    powers = [("n", sign * rows), ("s", sign * deviation), ("λ", sign)]
    over = [*([str(number.numerator)] if number.numerator != 1 else []), *(name for name, power in powers if power > 0)]
    under = [*([str(number.denominator)] if number.denominator != 1 else []), *(name for name, power in powers if power < 0)]
    bottom = "·".join(under)
    return ("·".join(over) or "1") + (f"/{bottom}" if len(under) == 1 else f"/({bottom})" if under else "")
