"""What may stand in place of a number: values that become runs, a path or a search whose values are found by training, a strength that adapts itself.

A field says what its number may be (`Annotated[Number, Searchable(ge=0)]`); every value that a range names obeys the
same bounds, so `{"values": [-1]}` for a strength is refused at the path of the -1.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from regtrain.contract.base import Part, Unfit, is_object

MOST_VALUES = 10_000
F = TypeVar("F")
"""The number in whose place the range stands, with its bounds."""


class _Range(Part):
    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        return cls.__name__


class Values(_Range, Generic[F]):
    """Each of these values, one run each."""

    values: Annotated[tuple[F, ...], Field(min_length=1, max_length=MOST_VALUES)]
    """The values, in the order of the runs."""


class Log(_Range, Generic[F]):
    """`points` values from low to high, both included, equally spaced in the logarithm."""

    log: tuple[Annotated[F, Field(gt=0)], Annotated[F, Field(gt=0)]]
    """Low and high end, both greater than 0."""
    points: Annotated[int, Field(ge=2, le=MOST_VALUES)]
    """How many values."""

    @model_validator(mode="after")
    def ends_rise(self) -> "Log[F]":
        return _ends_rise(self, self.log)


class Linear(_Range, Generic[F]):
    """`points` values from low to high, both included, equally spaced."""

    linear: tuple[F, F]
    """Low and high end."""
    points: Annotated[int, Field(ge=2, le=MOST_VALUES)]
    """How many values."""

    @model_validator(mode="after")
    def ends_rise(self) -> "Linear[F]":
        return _ends_rise(self, self.linear)


class Path(_Range, Generic[F]):
    """So many values of λ of a linear model, from λ_max, where all weights are zero, down to λ_max·ratio, equally spaced in the logarithm. λ_max follows from the
    training rows; every value starts from the weights of a stronger one (Friedman, Hastie & Tibshirani 2010)."""

    path: Annotated[int, Field(ge=2, le=MOST_VALUES)]
    """How many values."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """The smallest value over λ_max."""


class Suggest(_Range, Generic[F]):
    """Values between low and high that Optuna proposes, `selection.trials` of them, each batch from what the runs before it have shown
    (tree-structured Parzen estimator; Bergstra et al. 2011; Akiba et al. 2019)."""

    suggest: tuple[F, F]
    """Low and high end."""
    log: bool = False
    """Search in the logarithm; both ends greater than 0."""

    @model_validator(mode="after")
    def ends_rise(self) -> "Suggest[F]":
        if self.log and self.suggest[0] <= 0:  # pyright: ignore[reportOperatorIssue] - numbers, whatever their bounds
            raise Unfit("a search in the logarithm needs ends greater than 0", 'raise the low end, or leave "log" out')
        return _ends_rise(self, self.suggest)


class Adapt(_Range, Generic[F]):
    """A strength that changes while the run trains, once an epoch: by the `evidence` of the training rows (MacKay 1992), or along the gradient of the validation
    loss (`validation_gradient`; Larsen et al. 1996). Each start is a run of its own."""

    adapt: Literal["evidence", "validation_gradient"]
    """What it follows."""
    start: F | Annotated[tuple[F, ...], Field(min_length=1, max_length=100)] = 1.0  # pyright: ignore[reportAssignmentType] - a number, whatever its bounds
    """Its first value, or several. The validation loss has more than one minimum: start large, and more than once."""

    @property
    def starts(self) -> tuple[float, ...]:
        start: Any = self.start
        return tuple(start) if isinstance(start, tuple) else (float(start),)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


Range = Values[float] | Log[float] | Linear[float] | Path[float] | Suggest[float] | Adapt[float]
Number = float | Range
"""A number, or a range in its place."""

SHAPES: dict[str, Any] = {"suggest": Suggest, "path": Path, "adapt": Adapt, "values": Values, "log": Log, "linear": Linear}
"""The key that tells a range → the range. `suggest` first: it has a `log` of its own."""


@dataclass(frozen=True)
class Searchable:
    """Marks a number in whose place a range may stand, and bounds it: `ge`, `gt`, `le`, `lt` as in pydantic's Field."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    @property
    def number(self) -> Any:
        """The type of one number within the bounds."""
        return Annotated[float, Field(gt=self.gt, ge=self.ge, lt=self.lt, le=self.le, allow_inf_nan=False)]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        number = self.number
        choices = {f"<{key}>": handler.generate_schema(shape) for key, shape in _shapes_within(self).items()}
        return core_schema.tagged_union_schema({"<number>": handler.generate_schema(number), **choices}, discriminator=_tag)


@cache
def _shapes_within(bounds: Searchable) -> dict[str, Any]:
    """The ranges of these bounds. Made once: making a model costs a hundred times what using it does."""
    return {key: shape[bounds.number] for key, shape in SHAPES.items()}


def values_of(number: Number) -> tuple[float, ...]:
    """The concrete values, in the order of the runs; of an adapting strength its starts.

    Raises:
        TypeError: a path or a search, whose values are not known before training.
    """
    match number:
        case Values():
            return number.values
        case Log():
            return tuple(float(v) for v in np.geomspace(*number.log, number.points))
        case Linear():
            return tuple(float(v) for v in np.linspace(*number.linear, number.points))
        case Adapt():
            return number.starts
        case Path() | Suggest():
            raise TypeError(f"the values of {number!r} are found by training")
        case _:
            return (float(number),)


def ends_of(number: Number) -> tuple[float, float]:
    """The smallest and the largest value that may come to stand here."""
    match number:
        case Path():
            return 0.0, np.inf
        case Suggest():
            return number.suggest
        case _:
            return min(values_of(number)), max(values_of(number))


def concrete(number: Number) -> float:
    """The number of a run's own spec, from which every range has been expanded; of an adapting strength its start.

    Raises:
        TypeError: a range is still in its place.
    """
    if isinstance(number, int | float):
        return float(number)
    if isinstance(number, Adapt) and len(number.starts) == 1:
        return number.starts[0]
    raise TypeError(f"expected the number of one run, found the range {number!r}: expand the spec first")


def _tag(value: Any) -> str:
    """Which alternative the caller means, so that one typo gives one error. Tags in <> cannot be keys of a spec."""
    keys = value.keys() if is_object(value) else type(value).model_fields.keys() if isinstance(value, _Range) else ()
    return next((f"<{key}>" for key in SHAPES if key in keys), "<number>")


def _ends_rise(part: Any, ends: tuple[Any, Any]) -> Any:
    if ends[0] >= ends[1]:
        raise Unfit("the low end must be below the high end", "write [low, high] with low < high")
    return part
