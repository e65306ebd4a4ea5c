"""What may stand in place of a number: a list of values, or points between two ends. Each value becomes a run.

A field says what its number may be (`Annotated[Number, Searchable(ge=0)]`); every value that a range names obeys the
same bounds, so `{"values": [-1]}` for a strength is refused at the path of the -1.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Generic, TypeVar

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


Range = Values[float] | Log[float] | Linear[float]
Number = float | Range
"""A number, or a range in its place."""

SHAPES: dict[str, Any] = {"values": Values, "log": Log, "linear": Linear}


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
    """The concrete values, in the order of the runs."""
    match number:
        case Values():
            return number.values
        case Log():
            return tuple(float(v) for v in np.geomspace(*number.log, number.points))
        case Linear():
            return tuple(float(v) for v in np.linspace(*number.linear, number.points))
        case _:
            return (float(number),)


def concrete(number: Number) -> float:
    """The number of a run's own spec, from which every range has been expanded.

    Raises:
        TypeError: a range is still in its place.
    """
    if isinstance(number, int | float):
        return float(number)
    raise TypeError(f"expected the number of one run, found the range {number!r}: expand the spec first")


def _tag(value: Any) -> str:
    """Which alternative the caller means, so that one typo gives one error. Tags in <> cannot be keys of a spec."""
    keys = value.keys() if is_object(value) else type(value).model_fields.keys() if isinstance(value, _Range) else ()
    return next((f"<{key}>" for key in SHAPES if key in keys), "<number>")


def _ends_rise(part: Any, ends: tuple[Any, Any]) -> Any:
    if ends[0] >= ends[1]:
        raise Unfit("the low end must be below the high end", "write [low, high] with low < high")
    return part
