"""The small tables that both sides share: states, series, events, catalogue."""

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any, get_args

import numpy as np
import pytest
from contract_specs import GOOD, changed
from jsonschema import Draft202012Validator

from regtrain.contract.catalog import FAMILIES, catalog, schema
from regtrain.contract.diagnostics import ORDER, includes
from regtrain.contract.errors import Warned
from regtrain.contract.events import KINDS, Checkpointed, Event, Failed, Finished, Log, Noticed, PackBegun, Points, RunFinished, Started, buffers_behind, decode, encode
from regtrain.contract.series import SERIES, series_named
from regtrain.contract.states import FINAL, TRANSITIONS, Failure, RunState, State, StopReason


def test_final_states_are_left_by_nothing_and_reached_by_all_others() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state, following in TRANSITIONS.items() if not following} == FINAL

    def reachable(state: State) -> set[State]:
        found = {state}
        while grown := {after for before in found for after in TRANSITIONS[before]} - found:
            found |= grown
        return found

    assert reachable(State.QUEUED) == set(State)
    for state in set(State) - FINAL:
        assert reachable(state) & FINAL
        assert State.CANCELLED in TRANSITIONS[state], "what has not ended can be cancelled"
    assert all(state not in following for state, following in TRANSITIONS.items()), "no move stays where it is"


def test_succeeding_is_possible_from_running_alone() -> None:
    assert [state for state, following in TRANSITIONS.items() if State.SUCCEEDED in following] == [State.RUNNING]


ARRAY = np.array([[1.5, np.nan], [np.inf, -0.0]], np.float32)
EVENTS: list[Event] = [
    Started(
        runs=2, packs=[[0, 1]], steps=10, steps_per_epoch=5, layers=["layers.0", "head"], series=["loss/train"], penalised={"regularizers.0": ["head.weight"]},
        step_order=["gather"], environment={"torch": "2", "threads": 1}, warnings=[Warned("a.b", "odd", "data")], pack=1, step=3,
        pack_steps=[10],
    ),
    PackBegun(pack=1, layers=["head"], steps=7, steps_per_epoch=7, runs=[3, 4], values=[{"a.lambda": 0.5}, {}], variant="wide"),
    Points(
        pack=0, step=2, steps={"loss/train": np.arange(2), "loss/val": np.zeros(0, np.int64)}, values={"loss/train": ARRAY, "loss/val": np.zeros((0, 2))},
        counts={"loss/train": np.array([2, 1]), "loss/val": np.array([0, 0])},
    ),
    RunFinished(run=1, state=RunState.FAILED, stop_reason=StopReason.DIVERGED, steps=7, metrics={"loss/train": float("nan")}, best={}, zeros={"head.weight": 3}, first_nonfinite={"step": 7}),
    RunFinished(run=2, state=RunState.SUCCEEDED, stop_reason=StopReason.BUDGET, steps=9, metrics={}, certificate={"duality_gap": 1e-15, "closed_form_distance": None}),
    Noticed(run=1, symptom="vanishing_signal", layer="layers.0", step=0, value=1e-5, bound=1e-2, severity="critical", confidence=0.99, evidence={"chi": 0.5}),
    Checkpointed(pack=0, step=5, path="/tmp/x", sha256="00"),
    Log(level="info", message="ünïcode"),
    Finished(result={"chosen_run": None}, path="/tmp/m", sha256="11"),
    Failed(failure=Failure.DATA, message="no rows", detail="…"),
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b or (a != a and b != b)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_the_pipe_to_the_last_bit(event: Event) -> None:
    parts = encode(event)
    assert all(isinstance(part, bytes) for part in parts)
    assert buffers_behind(parts[0]) == len(parts) - 1
    back = decode(parts)
    assert type(back) is type(event)
    assert all(same(getattr(event, f.name), getattr(back, f.name)) for f in fields(event))


def test_every_kind_of_event_is_in_the_table() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event)) == set(KINDS.values())


def test_arrays_of_a_decoded_event_cannot_be_changed_by_mistake() -> None:
    points = decode(encode(next(event for event in EVENTS if isinstance(event, Points))))
    assert isinstance(points, Points)
    assert not points.values["loss/train"].flags.writeable


def test_series_are_declared_once_and_found_by_name() -> None:
    assert len({series.name for series in SERIES}) == len(SERIES)
    assert series_named("penalty/l1") == series_named("penalty/l1.2") == series_named("penalty/*")
    assert series_named("penalty_gradient/norm") is not series_named("penalty/*")
    assert series_named("nonsense") is None
    assert all(series.meaning for series in SERIES)


def test_presets_contain_each_other_in_order_of_cost() -> None:
    for i, dear in enumerate(ORDER):
        assert [includes(dear, cheap) for cheap in ORDER] == [j <= i for j in range(len(ORDER))]


def test_the_catalogue_has_every_kind_of_every_union_with_its_words() -> None:
    families = catalog()["families"]
    assert families.keys() == FAMILIES.keys()
    for family, union in FAMILIES.items():
        declared = {get_args(part.model_fields["kind"].annotation)[0] for part in get_args(get_args(union)[0])}
        assert {kind["kind"] for kind in families[family]} == declared
        for kind in families[family]:
            assert kind["doc"], f"{family}/{kind['kind']} has no docstring"


def test_every_field_of_every_kind_says_what_it_means() -> None:
    parts = [part for kinds in catalog()["families"].values() for part in kinds] + catalog()["ranges"] + catalog()["job"]
    missing = [f"{part['title']}.{field['name']}" for part in parts for field in part["fields"] if not field["doc"]]
    assert missing == []


def test_the_json_schema_accepts_what_parses_and_refuses_what_does_not() -> None:
    Draft202012Validator.check_schema(schema())
    validator = Draft202012Validator(schema())
    assert validator.is_valid(GOOD)
    assert validator.is_valid(changed({"regularizers.0.lambda": {"log": [1e-3, 1], "points": 3}}))
    for wrong in ({"optimiser": {}}, {"optimizer.lr": "0.1"}, {"optimizer.lr": 0}, {"regularizers.0.lambda": {"values": [-1]}}, {"loss": {"kind": "mse"}}):
        assert not validator.is_valid(changed(wrong)), wrong


@pytest.mark.parametrize(("modules", "absent"), [("regtrain", ["httpx"]), ("regtrain.client, regtrain.cli", ["regtrain.contract.job"])])
def test_importing_regtrain_loads_neither_numpy_nor_pydantic(modules: str, absent: list[str]) -> None:
    code = f"import sys, {modules}; print([m for m in {['numpy', 'pydantic', 'torch', 'sqlalchemy', *absent]} if m in sys.modules]); regtrain.JobSpec, regtrain.Client"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import regtrain

    with pytest.raises(AttributeError, match="nonsense"):
        _ = regtrain.nonsense  # type: ignore[attr-defined]
