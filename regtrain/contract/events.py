"""What training reports, and its form on the pipe: a JSON header and raw buffers. No pickle.

`Points` carry arrays, never scalars. An event is complete in itself; the order of events is the order in which they must be stored.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.base import is_list, is_object
from regtrain.contract.errors import Warned
from regtrain.contract.states import Failure, RunState, StopReason
from regtrain.contract.symptoms import Severity, SymptomName


@dataclass(frozen=True)
class Started:
    """Training begins, or goes on at `step` of `pack`."""

    runs: int
    packs: list[list[int]]
    """The indices of the runs of each pack, in training order: stored with the first attempt and kept by later ones."""
    steps: int
    """Steps of one run's whole budget, of the first pack; others are told as they begin."""
    steps_per_epoch: int
    layers: list[str]
    series: list[str]
    penalised: dict[str, list[str]]
    """`regularizers.0` → names of the tensors that it acts on."""
    step_order: list[str]
    environment: dict[str, Any]
    warnings: list[Warned] = field(default_factory=list[Warned])
    """Found in the data; source `data`."""
    times: dict[str, int] = field(default_factory=dict[str, int])
    """Recurrent layer → how many time steps it makes."""
    pack_steps: list[int] = field(default_factory=list[int])
    """Steps of each pack, where they differ."""
    pack: int = 0
    step: int = 0

    @property
    def steps_of_packs(self) -> list[int]:
        return self.pack_steps or [self.steps] * len(self.packs)


@dataclass(frozen=True)
class PackBegun:
    """Training of a pack begins, or goes on: what may differ from pack to pack, and what its runs did not have when the job was submitted."""

    pack: int
    layers: list[str]
    steps: int
    """Of one run's whole budget."""
    steps_per_epoch: int
    runs: list[int]
    """The runs that train; the others of the pack have been left out."""
    values: list[dict[str, float]]
    """Of these runs: path → value of everything that was searched."""
    variant: str | None = None
    times: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Points:
    """Consecutive points of several series of one pack.

    `values[name]`: (n, R), (n, R, L) or (n, R, times) for the n entries of `steps[name]`. Of run r only the first `counts[name][r]` rows
    are points; what follows has been computed after the run stopped and is not to be kept.
    """

    pack: int
    step: int
    """Updates done when this was reported: every point of the series up to here has been reported."""
    steps: dict[str, NDArray[np.int64]]
    values: dict[str, NDArray[Any]]
    counts: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class RunFinished:
    """One run has made its last step. Metrics that are not finite stand in `metrics` as they are (NaN, inf)."""

    run: int
    state: RunState
    stop_reason: StopReason
    steps: int
    metrics: dict[str, float]
    best: dict[str, float] = field(default_factory=dict[str, float])
    """Best evaluation: {"step": …, "loss/val": …}, empty without validation rows."""
    zeros: dict[str, int] = field(default_factory=dict[str, int])
    """Exact zeros of each penalised tensor."""
    coefficients: dict[str, Any] | None = None
    """Linear models: weights and intercept in the units of the raw columns, and of the standardized ones."""
    first_nonfinite: dict[str, Any] | None = None
    """Where a diverged run first met a number that is not finite: `step`, `series`, `layer`; `operation`, `rows`, `rows_affected`, `float64` and `in_words` of that
    update made once more; `last`, the updates up to it: `steps`, `layers`, and a list a series, of a list of layers where it is per layer."""
    certificate: dict[str, float | None] | None = None
    """Convex jobs: how far the run is from the minimum of its objective. `objective`; `duality_gap`, more than which it cannot fall, and the same as a share
    (`relative_gap`); `kkt_violation`, the largest slope that is left; `closed_form_distance`, relative, for ridge and least squares. Null where not known."""
    adaptation: dict[str, Any] | None = None
    """What has become of a strength that adapts: `path`, `method`, `start`, `strength`, `verdict`, `in_words`, `gradient` and `finite_difference` of what it
    follows in ln λ, `iterations`."""


@dataclass(frozen=True)
class Noticed:
    """A symptom of one run, where its criterion was met first."""

    run: int
    symptom: SymptomName
    layer: str | None
    """The layer that shows it most; None where it is of the whole net."""
    step: int
    value: float
    """What was measured, and the bound that it is beyond."""
    bound: float
    severity: Severity
    confidence: float
    """From 0 to 1: how sure the criterion is, not how likely a cause."""
    evidence: dict[str, Any] = field(default_factory=dict[str, Any])
    """The figures behind it: what a person would look at."""
    pack: int = 0
    done: int = 0
    """Updates done when it was noticed: all points up to there have been reported."""


@dataclass(frozen=True)
class Checkpointed:
    """A file from which the job can go on bit for bit lies, fsynced, at `path`; everything before it has been reported."""

    pack: int
    step: int
    path: str
    sha256: str


@dataclass(frozen=True)
class Log:
    level: str
    message: str


@dataclass(frozen=True)
class Finished:
    """All runs are done; the model file lies, fsynced, at `path`."""

    result: dict[str, Any]
    path: str
    sha256: str


@dataclass(frozen=True)
class Failed:
    failure: Failure
    message: str
    detail: str = ""


Event = Started | PackBegun | Points | Noticed | RunFinished | Checkpointed | Log | Finished | Failed
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}
_ENUMS = {"state": RunState, "stop_reason": StopReason, "failure": Failure}


def encode(event: Event) -> list[bytes]:
    """The event as a JSON header followed by one raw buffer for each array."""
    buffers: list[bytes] = []

    def plain(value: Any) -> Any:
        if _is_array(value):
            buffers.append(np.ascontiguousarray(value).tobytes())
            return {"array": len(buffers) - 1, "dtype": value.dtype.str, "shape": value.shape}
        if is_object(value):
            return {key: plain(inner) for key, inner in value.items()}
        if is_list(value):
            return [plain(inner) for inner in value]
        if isinstance(value, Warned):
            return {"path": value.path, "message": value.message, "source": value.source}
        return value

    header = {"event": type(event).__name__, "fields": {f.name: plain(getattr(event, f.name)) for f in fields(event)}}
    return [json.dumps({**header, "buffers": len(buffers)}).encode(), *buffers]


def buffers_behind(header: bytes) -> int:
    """How many raw buffers follow this header."""
    return json.loads(header)["buffers"]


def decode(parts: Sequence[bytes]) -> Event:
    """The inverse of `encode`; arrays are read-only views of the buffers."""

    def rich(value: Any) -> Any:
        if is_object(value):
            if value.keys() == {"array", "dtype", "shape"}:
                return np.frombuffer(parts[1 + int(value["array"])], dtype=value["dtype"]).reshape(value["shape"])
            return {key: rich(inner) for key, inner in value.items()}
        return [rich(inner) for inner in value] if is_list(value) else value

    header = json.loads(parts[0])
    values: dict[str, Any] = {name: _ENUMS[name](value) if name in _ENUMS else rich(value) for name, value in header["fields"].items()}
    if header["event"] == "Started":
        values["warnings"] = [Warned(**warned) for warned in values["warnings"]]
    return KINDS[header["event"]](**values)


def _is_array(value: Any) -> TypeGuard[NDArray[Any]]:
    return isinstance(value, np.ndarray)
