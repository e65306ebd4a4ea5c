"""What every piece of a spec has in common."""

from typing import Any, TypeGuard

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A frozen piece of a spec. Unknown keys are refused; a number is a number; docstrings become the JSON Schema."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )


class Unfit(ValueError):
    """Why the fields of a part do not fit together, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value that was read from JSON is an object."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether a value that was read from JSON is a list."""
    return isinstance(value, list)
