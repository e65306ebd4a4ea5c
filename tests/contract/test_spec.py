"""A spec from JSON and back, its runs, its digest, and where its values came from."""

import json
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from contract_specs import changed, spec_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regtrain.contract.datasets import Counts, counts, facts_of
from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import JobSpec, batch_size, digest, origin, parse, resolved, steps, steps_per_epoch
from regtrain.contract.models import layers, parameters
from regtrain.contract.ranges import Linear, Log, Values, concrete, values_of
from regtrain.contract.runs import MOST_IN_A_PACK, MOST_RUNS, PACK_BYTES, bytes_of_run, count, expand, packs

positive = st.floats(1e-6, 1e6, allow_nan=False)
share = st.floats(0, 0.99)


def searchable(number: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """A number, or a range in its place."""
    ends = st.tuples(number, number).map(sorted).filter(lambda pair: pair[0] < pair[1])
    return st.one_of(
        number,
        st.fixed_dictionaries({"values": st.lists(number, min_size=1, max_size=4)}),
        st.fixed_dictionaries({"linear": ends, "points": st.integers(2, 4)}),
    )


def kinds(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object in which each field but `kind` may be left out."""
    return st.fixed_dictionaries({"kind": fields.pop("kind")}, optional=fields)


REQUIRED = {"lambda": searchable(st.floats(0, 10))}
regularizers = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("l1"), **REQUIRED}, optional={"method": st.sampled_from(["proximal", "subgradient"]), "on": st.sampled_from(["weights", "all", ["head"]])}
    ),
    st.fixed_dictionaries({"kind": st.sampled_from(["l2", "weight_decay", "elastic_net"]), **REQUIRED}),
    st.fixed_dictionaries({"kind": st.just("dropout"), "rate": searchable(share)}),
    kinds(kind=st.just("early_stopping"), patience=st.integers(1, 9), restore=st.booleans()),
)
optimizers = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("sgd"), "lr": searchable(positive)}, optional={"momentum": searchable(share), "schedule": kinds(kind=st.just("cosine"), warmup_steps=st.integers(0, 9))}
    ),
    kinds(kind=st.just("adam"), lr=searchable(positive), beta1=searchable(share), eps=positive),
)
specs = st.fixed_dictionaries(
    {
        "dataset": kinds(kind=st.sampled_from(["digits", "iris", "wine"]), validation=share, standardize=st.booleans(), split=st.sampled_from(["random", "stratified", "last"])),
        "model": kinds(kind=st.just("mlp"), activation=st.sampled_from(["relu", "tanh"]), bias=st.booleans()).flatmap(
            lambda model: st.lists(st.integers(1, 64), min_size=1, max_size=3).map(lambda hidden: {**model, "hidden": hidden})
        ),
        "loss": kinds(kind=st.just("cross_entropy"), label_smoothing=searchable(share)),
        "optimizer": optimizers,
    },
    optional={
        "regularizers": st.lists(regularizers, max_size=3),
        "clip": st.one_of(st.none(), st.fixed_dictionaries({"kind": st.sampled_from(["global_norm", "value"]), "max": searchable(positive)})),
        "budget": st.fixed_dictionaries({}, optional={"epochs": st.integers(1, 99), "batch_size": st.one_of(st.just("all"), st.integers(1, 99))}),
        "selection": st.fixed_dictionaries({"seeds": st.integers(1, 3)}),
        "seed": st.integers(0, 2**53),
        "name": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    },
)
often = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@often
@given(specs)
def test_json_to_spec_to_json_and_back_is_the_same_spec(sent: dict[str, Any]) -> None:
    spec = parse(json.dumps(sent))
    full = resolved(spec)
    assert parse(json.dumps(full)) == spec
    assert resolved(parse(json.dumps(full))) == full
    assert digest(parse(json.dumps(full))) == digest(spec)


@often
@given(specs)
def test_what_was_sent_stands_in_the_resolved_spec(sent: dict[str, Any]) -> None:
    def contained(part: Any, whole: Any) -> bool:
        if isinstance(part, dict):
            return all(contained(value, whole[key]) for key, value in part.items())
        return part == whole or (isinstance(part, list | tuple) and all(contained(a, b) for a, b in zip(part, whole, strict=True)))

    assert contained(sent, resolved(parse(json.dumps(sent))))


@often
@given(specs)
def test_runs_of_a_spec(sent: dict[str, Any]) -> None:
    spec = parse(json.dumps(sent))
    if count(spec) > 200:
        return
    runs = expand(spec)
    assert len(runs) == count(spec)
    assert [run.index for run in runs] == list(range(len(runs)))
    assert [run.seed for run in runs] == list(range(spec.selection.seeds)) * (len(runs) // spec.selection.seeds)
    for run in runs:
        assert count(run.spec) == 1
        assert run.spec.selection.seeds == 1
        assert expand(run.spec)[0].spec == run.spec
        for path, value in run.values.items():
            assert _at(resolved(run.spec), path) == value
    assert expand(spec) == runs


def _at(node: Any, path: str) -> Any:
    for part in path.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def test_runs_are_ordered_by_grid_with_the_last_range_fastest_then_by_seed() -> None:
    spec = spec_of({"regularizers.0.lambda": {"values": [3, 1]}, "optimizer.lr": {"values": [0.1, 0.2, 0.3]}, "selection": {"seeds": 2}})
    expected = [(lam, lr, seed) for lam, lr, seed in product([3, 1], [0.1, 0.2, 0.3], [0, 1])]
    assert [(run.values["regularizers.0.lambda"], run.values["optimizer.lr"], run.seed) for run in expand(spec)] == expected


def test_a_run_of_a_plain_job_is_the_job_itself() -> None:
    spec = spec_of({})
    (run,) = expand(spec)
    assert (run.index, run.values, run.seed, run.spec, run.point, run.variant) == (0, {}, 0, spec, 0, None)


def test_too_many_runs_are_refused_with_their_number() -> None:
    spec = spec_of({"regularizers.0.lambda": {"linear": [0, 1], "points": MOST_RUNS}, "selection": {"seeds": 2}})
    with pytest.raises(SpecRefused, match="8,192 runs"):
        expand(spec)


def test_rows_of_an_inline_dataset_are_no_ranges() -> None:
    spec = parse(json.dumps(changed({"dataset": {"kind": "inline", "x": [[1, 2]] * 50, "y": [0, 1] * 25}})))
    assert count(spec) == 1


def test_packs_hold_every_run_once_and_in_order() -> None:
    spec = spec_of({"regularizers.0.lambda": {"linear": [0, 1], "points": 700}})
    shape = layers(spec.model, features=64, outputs=10)
    for device in ("cpu", "cuda"):
        found = packs(expand(spec), spec, bytes_of=lambda _: bytes_of_run(shape, batch=64, item_bytes=4), device=device)
        assert [index for pack in found for index in pack] == list(range(700))
        assert max(map(len, found)) * bytes_of_run(shape, batch=64, item_bytes=4) <= PACK_BYTES[device]
        assert max(map(len, found)) <= MOST_IN_A_PACK


@pytest.mark.parametrize(
    ("number", "values"),
    [
        (0.5, (0.5,)),
        (Values[float](values=(3, 1, 2)), (3, 1, 2)),
        (Linear[float](linear=(0, 1), points=5), (0, 0.25, 0.5, 0.75, 1)),
        (Log[float](log=(1e-4, 1), points=3), (1e-4, 1e-2, 1)),
    ],
)
def test_values_of_a_range(number: Any, values: tuple[float, ...]) -> None:
    assert values_of(number) == pytest.approx(values, rel=1e-14)
    assert values_of(number)[0] == values[0]
    assert values_of(number)[-1] == values[-1]


def test_a_range_is_no_concrete_number() -> None:
    assert concrete(2) == 2.0
    with pytest.raises(TypeError, match="expand the spec first"):
        concrete(Values[float](values=(1.0,)))


@given(st.integers(2, 5000), st.floats(0, 0.99), st.floats(0, 0.99))
def test_splits_have_every_row_once(rows: int, test: float, validation: float) -> None:
    spec = spec_of({"dataset": {"kind": "blobs", "rows": rows, "test": test, "validation": validation}})
    facts = facts_of(spec.dataset)
    assert facts is not None
    found = counts(spec.dataset, facts, seed=spec.seed)
    assert found.train + found.val + found.test == rows
    assert min(found.train, found.val, found.test) >= 0


@pytest.mark.parametrize(("batch", "size", "per_epoch"), [(64, 64, 23), ("all", 1438, 1), (1437, 1437, 2), (1, 1, 1438)])
def test_steps(batch: Any, size: int, per_epoch: int) -> None:
    spec = spec_of({"budget": {"epochs": 3, "batch_size": batch}})
    rows = Counts(train=1438, val=359, test=0)
    assert (batch_size(spec, rows), steps_per_epoch(spec, rows), steps(spec, rows)) == (size, per_epoch, 3 * per_epoch)


def test_digest_is_of_what_determines_the_numbers() -> None:
    plain = digest(spec_of({}))
    assert digest(spec_of({"name": "other", "metadata": {"team": "vision"}})) == plain
    assert digest(spec_of({"optimizer.nesterov": False})) == plain
    for change in ({"seed": 1}, {"optimizer.lr": 0.2}, {"dtype": "float64"}, {"diagnostics": "off"}, {"selection.seeds": 2}):
        assert digest(spec_of(change)) != plain


def test_origin_of_every_value() -> None:
    sent = changed({"regularizers.0.lambda": {"values": [0.1, 1]}, "clip": None, "metadata": {"values": "a label"}})
    found = origin(sent, resolved(parse(json.dumps(sent))))
    assert found["regularizers.0.lambda"] == "searched"
    assert found["regularizers.0.method"] == "default"
    assert found["optimizer.lr"] == "given"
    assert found["optimizer.nesterov"] == "default"
    assert found["optimizer.schedule.kind"] == "default"
    assert found["clip"] == "given"
    assert found["model.hidden"] == "given"
    assert found["metadata.values"] == "given"
    assert found["seed"] == "default"


def test_origin_survives_a_round_trip_through_json() -> None:
    sent = changed({})
    spec = parse(json.dumps(sent))
    assert origin(sent, resolved(parse(json.dumps(resolved(spec))))) == origin(sent, resolved(spec))


MODELS = [
    ({"kind": "linear"}, 64 * 10 + 10),
    ({"kind": "linear", "bias": False}, 64 * 10),
    ({"kind": "mlp", "hidden": [32, 16]}, 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
    ({"kind": "mlp", "hidden": [32], "normalization": {"kind": "batch"}}, 64 * 32 + 3 * 32 + 32 * 10 + 10),
    # 8×8 → pool 4×4 → pool 2×2
    ({"kind": "cnn", "channels": [4, 8], "image": [1, 8, 8]}, 4 * 9 + 4 + 8 * 4 * 9 + 8 + 8 * 2 * 2 * 10 + 10),
    ({"kind": "cnn", "channels": [4], "image": [1, 8, 8], "pool": "none", "stride": 2, "hidden": [5]}, 4 * 9 + 4 + 4 * 4 * 4 * 5 + 5 + 5 * 10 + 10),
]


@pytest.mark.parametrize(("model", "expected"), MODELS, ids=lambda value: value["kind"] if isinstance(value, dict) else "")
def test_parameters_by_hand(model: dict[str, Any], expected: int) -> None:
    shape = layers(spec_of({"model": model, "regularizers": []}).model, features=64, outputs=10)
    assert parameters(shape) == expected
    assert prod(shape[-1].output) == 10


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        spec_of({}).seed = 1


def test_values_are_plain_floats() -> None:
    spec = spec_of({"regularizers.0.lambda": {"log": [1e-3, 1], "points": 4}})
    assert {type(run.values["regularizers.0.lambda"]) for run in expand(spec)} == {float}
    assert np.isclose(np.diff(np.log10(values_of(spec.regularizers[0].lam))), 1).all()  # type: ignore[union-attr]


def test_the_spec_of_a_run_is_a_valid_spec() -> None:
    for run in expand(spec_of({"regularizers.0.lambda": {"values": [0, 1]}})):
        assert JobSpec.model_validate_json(json.dumps(resolved(run.spec))) == run.spec
