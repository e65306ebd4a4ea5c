"""Candidates, the random search beside them, and the job that tries both: everything that is proposed can be trained, and touches no row."""

import json
from typing import Any, get_args

import pytest
from contract_specs import GOOD, accept, changed
from hypothesis import given, settings
from hypothesis import strategies as st

from regtrain.contract.checks import check, shape_of
from regtrain.contract.datasets import Facts, facts_of
from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import JobSpec, parse, resolved
from regtrain.contract.remedies import MOST, Evidence, Patient, drawn, patient, remedies, request_of, trial_of
from regtrain.contract.runs import expand, packs
from regtrain.contract.symptoms import SYMPTOMS, SymptomName
from regtrain.contract.theory import log_ratio
from regtrain.contract.trial import wave_of
from regtrain.contract.variants import Variant, spec_of

NAMES: list[SymptomName | None] = [*get_args(SymptomName), None]
DEEP: dict[str, Any] = {
    "dataset": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [32] * 12, "activation": "sigmoid", "init": {"kind": "normal", "std": 0.01}},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "budget": {"epochs": 2, "batch_size": 64},
}

MODELS: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "mlp", "hidden": [8, 8, 8]},
    {"kind": "mlp", "hidden": [8] * 10, "activation": "tanh", "bias": False, "residual": True},
    {"kind": "mlp", "hidden": [5], "init": {"kind": "zeros"}, "normalization": {"kind": "batch"}},
    {"kind": "mlp", "hidden": [9, 4], "activation": "selu", "init": {"kind": "lsuv"}, "normalization": {"kind": "layer"}},
    {"kind": "cnn", "channels": [4, 4], "hidden": [8]},
    {"kind": "rnn", "hidden": [6], "cell": "tanh", "sequence": [8, 8]},
    {"kind": "rnn", "hidden": [6, 6], "cell": "gru", "sequence": [8, 8]},
]
REGULARIZERS: list[list[dict[str, Any]]] = [
    [],
    [{"kind": "l2", "lambda": 0.1}],
    [{"kind": "l1", "lambda": 1e-3}, {"kind": "weight_decay", "lambda": 0.0}],
    [{"kind": "early_stopping", "patience": 2}, {"kind": "non_negative"}],
]
OPTIMIZERS: list[dict[str, Any]] = [
    {"kind": "sgd", "lr": 0.1},
    {"kind": "sgd", "lr": 3.0, "momentum": 0.9, "nesterov": True, "schedule": {"kind": "cosine"}},
    {"kind": "adam", "lr": 0.01, "eps": 1e-3},
    {"kind": "lbfgs"},
    {"kind": "proximal"},
]
CLIPS: list[dict[str, Any] | None] = [None, {"kind": "global_norm", "max": 0.01}, {"kind": "value", "max": 1.0}]


@st.composite
def specs(draw: st.DrawFn) -> tuple[JobSpec, Facts]:
    """Specs of every model, optimizer and kind of penalty that `check` accepts."""
    body: dict[str, Any] = {
        "dataset": {"kind": "digits", "validation": 0.2, "standardize": draw(st.booleans())},
        "model": draw(st.sampled_from(MODELS)),
        "loss": {"kind": "cross_entropy", "label_smoothing": draw(st.sampled_from([0.0, 0.1]))},
        "regularizers": draw(st.sampled_from(REGULARIZERS)),
        "optimizer": draw(st.sampled_from(OPTIMIZERS)),
        "clip": draw(st.sampled_from(CLIPS)),
        "budget": {"epochs": draw(st.sampled_from([1, 20])), "batch_size": draw(st.sampled_from(["all", 32, 1000]))},
        "seed": draw(st.integers(0, 3)),
    }
    spec = parse(json.dumps(body))
    facts = known(spec)
    try:
        check(spec, facts)
    except SpecRefused:
        from hypothesis import reject

        reject()
    return spec, facts


def known(spec: JobSpec) -> Facts:
    facts = facts_of(spec.dataset)
    assert facts is not None
    return facts


def made(body: dict[str, Any], symptom: SymptomName | None, **request: Any) -> JobSpec:
    spec = parse(json.dumps(body))
    return trial_of(patient("job_1", spec, symptom, variant=None, values={}), known(spec), request_of(json.dumps(request).encode()))[0]


@settings(max_examples=60, deadline=None)
@given(specs(), st.sampled_from(NAMES))
def test_whatever_is_proposed_can_be_trained_on_the_same_rows(found: tuple[JobSpec, Facts], symptom: SymptomName | None) -> None:
    spec, facts = found
    tried = remedies(spec, facts, symptom)
    assert len(tried) <= MOST
    labels = [remedy.label for remedy in tried]
    assert len(set(labels)) == len(labels), labels
    for remedy in [*tried, *drawn(spec, facts, tried, count=3)]:
        other = spec_of(spec, Variant(label=remedy.label, set=remedy.set))
        check(parse(other.model_dump_json(by_alias=True)), facts)
        assert other != spec
        assert other.dataset.model_copy(update={"standardize": spec.dataset.standardize}) == spec.dataset
        assert other.seed == spec.seed
        assert remedy.why


@pytest.mark.parametrize("symptom", [s.name for s in SYMPTOMS if s.name not in ("wrong_output", "penalty_dominates", "penalty_invisible", "penalty_fights", "penalty_wasted")])
def test_a_plain_net_has_a_remedy_for_every_symptom_that_a_spec_can_cure(symptom: SymptomName) -> None:
    spec = parse(json.dumps({**DEEP, "dataset": {"kind": "digits", "validation": 0.2}, "clip": {"kind": "value", "max": 1.0}}))
    assert remedies(spec, known(spec), symptom)


@pytest.mark.parametrize("symptom", ["vanishing_signal", "vanishing_gradient", "saturated"])
def test_theory_comes_first_and_its_remedies_let_the_signal_through(symptom: SymptomName) -> None:
    spec = parse(json.dumps(DEEP))
    facts = known(spec)
    first = remedies(spec, facts, symptom)[:3]
    assert [remedy.label for remedy in first] == ["residual", "activation relu, init he_normal", "normalization batch"]
    for remedy in first:
        other = spec_of(spec, Variant(label="-", set=remedy.set))
        assert abs(log_ratio(other, facts, shape_of(other, facts))) < 6 < abs(log_ratio(spec, facts, shape_of(spec, facts)))


@pytest.mark.parametrize(("depth", "first"), [(7, "activation relu, init he_normal"), (8, "residual")])
def test_from_eight_layers_on_the_identity_comes_before_what_theory_expects_of_infinite_width(depth: int, first: str) -> None:
    spec = parse(json.dumps({**DEEP, "model": {"kind": "mlp", "hidden": [16] * depth, "activation": "sigmoid"}}))
    found = [remedy.label for remedy in remedies(spec, known(spec), "vanishing_signal")]
    assert found[0] == first
    assert {"residual", "activation relu, init he_normal"} <= set(found)


def test_a_rate_that_was_measured_against_its_bound_is_brought_below_it() -> None:
    """lr·sharpness of 8 against a bound of 2: 2/8/2 = 1/8 of the rate is at half of the bound."""
    spec = parse(json.dumps(GOOD))
    first = remedies(spec, known(spec), "rate_too_high", evidence=Evidence(8.0, 2.0))[0]
    assert first.set == {"optimizer.lr": 0.0125}
    assert first.label == "lr ÷ 8"


def test_a_measured_rate_that_reads_like_another_takes_its_place() -> None:
    """2/10.04/2 = 0.0996 of the rate reads `lr ÷ 10`, as a tenth does: a trial knows its contestants by their labels."""
    spec = parse(json.dumps(GOOD))
    labels = [remedy.label for remedy in remedies(spec, known(spec), "rate_too_high", evidence=Evidence(10.04, 2.0))]
    assert labels[0] == "lr ÷ 10"
    assert len(set(labels)) == len(labels)


def test_what_was_confirmed_before_comes_first() -> None:
    spec = parse(json.dumps(DEEP))
    plain = [remedy.label for remedy in remedies(spec, known(spec), "vanishing_signal")]
    later = [remedy.label for remedy in remedies(spec, known(spec), "vanishing_signal", before={plain[3]: 2, plain[1]: 1})]
    assert later[:2] == [plain[3], plain[1]]
    assert set(later) == set(plain)


def test_all_penalties_are_weakened_together_and_constraints_are_left() -> None:
    spec = parse(json.dumps(changed({"regularizers": [{"kind": "l1", "lambda": 3.0}, {"kind": "max_norm", "max": 1.0, "on": ["head"]}, {"kind": "l2", "lambda": 0.5}]})))
    sets = {remedy.label: remedy.set for remedy in remedies(spec, known(spec), "penalty_dominates")}
    assert sets["λ ÷ 10"] == {"regularizers.0.lambda": 0.3, "regularizers.2.lambda": 0.05}


# ---------------------------------------------------------------- random search


def test_the_random_search_follows_from_the_seed_of_the_job_and_stays_inside_the_space() -> None:
    spec = parse(json.dumps(DEEP))
    facts, tried = known(spec), remedies(spec, known(spec), "rate_too_high")
    first, again = drawn(spec, facts, tried, count=6), drawn(spec, facts, tried, count=6)
    other = drawn(spec.model_copy(update={"seed": 1}), facts, tried, count=6)
    assert first == again != other
    assert [one.label for one in first] == [f"random {n}" for n in range(1, 7)]
    paths = {path for remedy in tried for path in remedy.set}
    assert all(set(one.set) <= paths for one in first)
    rates = [one.set["optimizer.lr"] for one in first if "optimizer.lr" in one.set]
    assert rates
    assert all(0.1 / 100 * 0.99 <= lr <= 0.1 for lr in rates)


# ---------------------------------------------------------------- the job that tries them


def test_a_trial_is_control_remedies_and_as_many_random_contestants_over_the_same_seeds() -> None:
    spec = made(DEEP, "vanishing_signal")
    labels = [variant.label for variant in spec.variants]
    assert labels[0] == "as it is"
    assert spec.variants[0].set == {}
    assert len(labels) == 1 + 2 * MOST
    assert [label for label in labels if label.startswith("random ")] == labels[1 + MOST :]
    assert spec.selection.seeds == 8
    assert spec.trial is not None
    assert (spec.trial.of, spec.trial.symptom, spec.trial.control) == ("job_1", "vanishing_signal", "as it is")
    assert spec.metadata["remedy_of"] == "job_1"
    assert spec.dataset.validation == 0.2
    assert len(expand(spec)) == 13 * 8


def test_rows_that_were_not_held_out_are_and_it_is_said() -> None:
    for dataset, told in (({"kind": "digits"}, True), ({"kind": "digits", "validation": 0.2}, False), ({"kind": "digits", "validation": 0.3}, False)):
        spec = parse(json.dumps({**DEEP, "dataset": dataset}))
        trial, warnings = trial_of(patient("job_1", spec, None, variant=None, values={}), known(spec), request_of(b""))
        assert trial.dataset.validation == (dataset.get("validation") or 0.2)
        assert any(warned.path == "dataset.validation" for warned in warnings) is told


def test_the_run_that_shows_the_symptom_is_what_is_tried() -> None:
    """Of a sweep with variants and folds: its variant, its values; everything that repeats is left behind."""
    body = changed({"dataset": {"kind": "digits"}, "regularizers.0.lambda": {"values": [1e-4, 1.0]}, "selection": {"folds": 3}, "remedy": "try", "on_symptom": {"plateau": "stop"}})
    body["variants"] = [{"label": "a", "set": {}}, {"label": "wide", "set": {"model.hidden": [64]}}]
    of = patient("job_1", parse(json.dumps(body)), "penalty_dominates", variant="wide", values={"regularizers.0.lambda": 1.0})
    assert resolved(of.spec)["model"]["hidden"] == [64]
    assert resolved(of.spec)["regularizers"][0]["lambda"] == 1.0
    assert (of.spec.selection.folds, of.spec.variants, of.spec.remedy, of.spec.on_symptom) == (None, (), None, {})
    assert trial_of(of, known(of.spec), request_of(b""))[0].variants[1].set == {"regularizers.0.lambda": 0.1}


def test_where_the_loss_changes_accuracies_are_compared() -> None:
    assert made(DEEP, "class_imbalance").selection.metric == "accuracy/val"
    assert made(DEEP, "vanishing_signal").selection.metric == "loss/val"


def test_own_remedies_seeds_and_epochs() -> None:
    own = [{"label": "mine", "set": {"optimizer.lr": 0.01}}]
    spec = made(DEEP, None, remedies=own, seeds=10, epochs=1)
    assert [variant.label for variant in spec.variants] == ["as it is", "mine", "random 1"]
    assert (spec.selection.seeds, spec.budget.epochs) == (10, 1)
    assert spec.variants[2].set.keys() == {"optimizer.lr"}


@pytest.mark.parametrize(
    ("request_body", "path"),
    [
        ({"seeds": 7}, "seeds"),
        ({"seeds": 0, "order": "in_turn"}, "seeds"),
        ({"order": "one by one"}, "order"),
        ({"symptom": "flu"}, "symptom"),
        ({"remedies": []}, "remedies"),
        ({"remedies": [{"label": "mine", "set": {"dataset.kind": "iris"}}]}, "remedies.0.set.dataset.kind"),
        ({"remedies": [{"label": "a", "set": {"seed": 3}}]}, "remedies.0.set.seed"),
        ({"remedies": [{"label": "a", "set": {"optimizer.lr": 0.2}}, {"label": "b", "set": {"optimizer.lr": -1}}]}, "remedies.1.set.optimizer.lr"),
        ({"remedies": [{"label": "a", "set": {"optimizer.lr": 0.2}}, {"label": "a", "set": {"optimizer.lr": 0.3}}]}, "remedies.1.label"),
        ({"remedies": [{"label": "as it is", "set": {"optimizer.lr": 0.2}}]}, "remedies.0.label"),
        ({"remedies": [{"label": "random 1", "set": {"optimizer.lr": 0.2}}]}, "remedies.0.label"),
        ({"remedies": [{"label": "a", "set": {"model.hidden": [0]}}]}, "remedies.0.set.model.hidden.0"),
        ({"epochs": 0}, "epochs"),
        ({"sedes": 9}, "sedes"),
    ],
)
def test_requests_that_cannot_be_tried(request_body: dict[str, Any], path: str) -> None:
    spec = parse(json.dumps(DEEP))
    with pytest.raises(SpecRefused) as refusal:
        trial_of(patient("job_1", spec, None, variant=None, values={}), known(spec), request_of(json.dumps(request_body).encode()))
    assert refusal.value.problems[0].path == path, refusal.value.problems
    assert refusal.value.problems[0].hint


def test_a_symptom_that_no_change_is_known_for_asks_for_the_callers_own() -> None:
    with pytest.raises(SpecRefused, match="no change of the spec is known to cure wrong_output"):
        made(DEEP, "wrong_output")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"trial.control": "nobody"}, "trial.control"),
        ({"trial.control": "random 1"}, "trial.control"),
        ({"trial.of": "somebody"}, "trial.of"),
        ({"selection.seeds": 7}, "selection.seeds"),
        ({"trial.known": {"metric": 1.0, "shown": True}}, "trial.known"),
        ({"trial.known": {"metric": 1.0, "shown": True}, "trial.order": "in_turn"}, "trial.known"),
        ({"dataset.validation": 0.0}, "dataset.validation"),
        ({"selection.refit": True}, "selection"),
        ({"variants": [{"label": "as it is", "set": {}}]}, "variants"),
        ({"variants": [{"label": "as it is", "set": {}}, *({"label": f"lr {n}", "set": {"optimizer.lr": 0.1 / n}} for n in range(2, 16))]}, "selection.seeds"),
    ],
)
def test_a_spec_that_calls_itself_a_trial_must_be_one(changes: dict[str, Any], path: str) -> None:
    body = changed(changes, start=resolved(made(DEEP, "vanishing_signal")))
    with pytest.raises(SpecRefused) as refusal:
        accept(json.dumps(body))
    assert path in [problem.path for problem in refusal.value.problems]
    assert all(problem.hint for problem in refusal.value.problems)


def test_packs_go_wave_by_wave() -> None:
    """Eight seeds: two, two, four. A pack of a later wave never comes before one of an earlier."""
    spec = made(DEEP, "vanishing_signal")
    runs = expand(spec)
    ordered = packs(runs, spec, bytes_of=lambda _: 1000, device="cpu")
    waves = [{wave_of(runs[index].seed, 8) for index in pack} for pack in ordered]
    assert all(len(wave) == 1 for wave in waves)
    assert [min(wave) for wave in waves] == [0] * 13 + [2] * 13 + [4] * 13
    assert [len(pack) for pack in ordered] == [2] * 26 + [4] * 13
    assert isinstance(patient("job_1", spec, None, variant="residual", values={}), Patient)


def test_in_turn_packs_go_contestant_by_contestant() -> None:
    """The control with all its seeds, then of each contestant two and six."""
    spec = made(DEEP, "vanishing_signal", order="in_turn")
    runs = expand(spec)
    ordered = packs(runs, spec, bytes_of=lambda _: 1000, device="cpu")
    assert [[(runs[index].variant, runs[index].seed) for index in pack] for pack in ordered[:3]] == [
        [("as it is", seed) for seed in range(8)],
        [(spec.variants[1].label, 0), (spec.variants[1].label, 1)],
        [(spec.variants[1].label, seed) for seed in range(2, 8)],
    ]
    assert [runs[pack[0]].variant for pack in ordered] == ["as it is", *(variant.label for variant in spec.variants[1:] for _ in range(2))]


def test_fewer_than_eight_seeds_stop_at_what_is_to_be_cured_and_draw_nothing_at_random() -> None:
    spec = made(DEEP, "clip_always", order="in_turn", seeds=3, remedies=[{"label": "a", "set": {"optimizer.lr": 1.0}}])
    assert [variant.label for variant in spec.variants] == ["as it is", "a"]
    assert spec.on_symptom == dict.fromkeys(["clip_always", "no_change", "plateau", "rate_too_low", "underfitting"], "stop")
    assert made(DEEP, None, order="in_turn", seeds=3).on_symptom == {}
    assert made(DEEP, "clip_always", order="in_turn", remedies=[{"label": "a", "set": {"optimizer.lr": 1.0}}]).on_symptom == {}
