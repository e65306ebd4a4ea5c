"""Repetition of a job over seeds. Folds and rules that choose will stand here too."""

from typing import Annotated

from pydantic import Field

from regtrain.contract.base import Part


class Selection(Part):
    """Which repetitions a job makes of each set of values."""

    seeds: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Runs with seeds 0 … n−1: other initial weights, row order and noise, the same rows held out."""
