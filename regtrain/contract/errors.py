"""The errors that both sides know.

RegtrainError
├── SpecRefused        the caller's words cannot be accepted: a list of problems, each with its path
├── NotFound           no such job, dataset or file
├── Conflict           the move does not exist from the state in which the thing is
├── StaleAttempt       a worker writes for an attempt that is no longer the job's: stop at once, discard
└── TrainingError      the job cannot be trained; `failure` says of what class
    ├── DataError      its rows, or the weights that it begins from, are missing or unfit
    ├── Diverged       every run became non-finite
    └── ResourceError  it does not fit into memory or onto the disk
"""

from dataclasses import dataclass

from regtrain.contract.states import Failure


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what was sent: where, what, and what to do."""

    path: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Warned:
    """One thing that is accepted and probably not meant. `source`: `spec`, known at submission, or `data`, found by the worker."""

    path: str
    message: str
    source: str = "spec"


class RegtrainError(Exception):
    """Base of all errors that regtrain raises on purpose."""


class SpecRefused(RegtrainError):
    """What was sent cannot be accepted; `problems` names every place."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{p.path}: {p.message}" if p.path else p.message for p in problems))
        self.problems = problems


class NotFound(RegtrainError):
    """There is no such thing, or it is not yours."""


class Conflict(RegtrainError):
    """The thing exists, and is not in a state from which this can be done."""


class StaleAttempt(RegtrainError):
    """The job has moved on to another attempt or state: nothing was written."""


class TrainingError(RegtrainError):
    """The job cannot be trained."""

    failure = Failure.INFRASTRUCTURE


class DataError(TrainingError):
    """The rows, or the weights to begin from, are missing or unfit."""

    failure = Failure.DATA


class Diverged(TrainingError):
    """Every run of the job became non-finite."""

    failure = Failure.DIVERGED


class ResourceError(TrainingError):
    """The job does not fit into memory or onto the disk."""

    failure = Failure.RESOURCE
