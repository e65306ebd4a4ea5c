"""From hand-made symptoms to roots, consequences and words."""

from dataclasses import replace

import pytest

from regtrain.contract.diagnosis import SENTENCES, diagnose, sentence
from regtrain.contract.events import Noticed
from regtrain.contract.symptoms import BY_NAME, SYMPTOMS, SymptomName, judged

CHI = {"seen": 1e-5, "chi": 0.25, "chi_low": 0.24, "chi_high": 0.26, "layers": 34.0, "last": "layers.33"}


def noticed(symptom: SymptomName, *, run: int = 0, step: int = 0, layer: str | None = None, severity: str = "critical", **evidence: float | str) -> Noticed:
    return Noticed(run, symptom, layer, step, 1.5, 1.0, severity, 0.9, dict(evidence))  # pyright: ignore[reportArgumentType]


def test_causes_bring_only_what_comes_later() -> None:
    names = [symptom.name for symptom in SYMPTOMS]
    for place, symptom in enumerate(SYMPTOMS):
        assert all(names.index(brought) > place for brought in symptom.brings), symptom.name
        assert len(set(symptom.brings)) == len(symptom.brings)


def test_every_symptom_has_a_sentence() -> None:
    assert list(SENTENCES) == list(BY_NAME)
    assert judged("off") == [name for name in judged("light") if BY_NAME[name].needs == "off"]
    assert "vanishing_signal" in judged("standard")
    assert "saturated" not in judged("standard")
    assert judged("full") == list(BY_NAME)


def test_nothing_noticed_is_healthy() -> None:
    found = diagnose([], runs=3, preset="standard")
    assert (found.verdict, found.root, found.summary, found.runs) == ("healthy", None, "No symptom in any of 3 runs.", ())


def test_the_root_is_named_and_its_consequences_stand_under_it() -> None:
    """Noticed in any order: rate → dead units → no gradient → plateau → underfitting."""
    names: list[SymptomName] = ["underfitting", "plateau", "no_gradient", "dead_units", "rate_too_high"]
    found = diagnose([noticed(name, step=step) for step, name in enumerate(names)], runs=1, preset="full")
    assert (found.verdict, found.root) == ("symptoms", "rate_too_high")
    [root] = found.runs[0].roots
    assert (root.noticed.symptom, root.cause) == ("rate_too_high", "suspected")
    assert [inner.noticed.symptom for inner in root.under] == ["dead_units", "no_gradient", "plateau", "underfitting"]
    assert [inner.cause for inner in root.under] == [None] * 4
    assert found.summary.endswith("It is suspected to bring about dead_units, no_gradient, plateau, underfitting.")


def test_a_chain_is_a_tree() -> None:
    """class_imbalance brings a plateau; clip_always does not bring overfitting, which stays a root of its own."""
    found = diagnose([noticed("overfitting"), noticed("clip_always", severity="note"), noticed("plateau"), noticed("class_imbalance")], runs=1, preset="full")
    assert [root.noticed.symptom for root in found.runs[0].roots] == ["class_imbalance", "clip_always", "overfitting"]
    assert [inner.noticed.symptom for inner in found.runs[0].roots[0].under] == ["plateau"]


def test_notes_alone_are_healthy() -> None:
    found = diagnose([noticed("clip_always", severity="note"), noticed("penalty_invisible", severity="note")], runs=1, preset="standard")
    assert (found.verdict, found.root, found.runs[0].verdict) == ("healthy", None, "healthy")
    assert found.summary == "No symptom. Noted: penalty_invisible, clip_always."


def test_a_note_with_something_grave_under_it_is_the_root() -> None:
    found = diagnose([noticed("unscaled_inputs", severity="note", why="so"), noticed("rate_too_high", why="so")], runs=1, preset="standard")
    assert found.root == "unscaled_inputs"


def test_what_was_there_before_training_is_not_brought_about_by_it() -> None:
    """Saturated from the first, then a rate that is too high: two roots, the older first. Saturated on the way: a consequence."""
    found = diagnose([noticed("saturated"), replace(noticed("rate_too_high", step=9, why="so"), done=32)], runs=1, preset="full")
    assert [root.noticed.symptom for root in found.runs[0].roots] == ["saturated", "rate_too_high"]
    assert found.root == "saturated"
    later = [replace(noticed(name, step=9, why="so"), done=32) for name in ("saturated", "rate_too_high")]
    assert [root.noticed.symptom for root in diagnose(later, runs=1, preset="full").runs[0].roots] == ["rate_too_high"]


def test_a_clip_that_always_acts_is_the_cause_of_steps_that_are_too_short() -> None:
    found = diagnose([replace(noticed("rate_too_low"), done=256), replace(noticed("clip_always", severity="note"), done=256)], runs=1, preset="standard")
    assert found.root == "clip_always"


def test_a_sweep_is_summarised() -> None:
    sick = [noticed("vanishing_signal", run=run, layer="layers.0", **CHI) for run in range(12)]
    found = diagnose([*sick, noticed("rate_too_high", run=20, why="so"), noticed("plateau", run=3)], runs=64, preset="standard")
    assert found.root == "vanishing_signal"
    kind = next(one for one in found.symptoms if one.symptom == "vanishing_signal")
    assert (kind.symptom, kind.runs, kind.root_of, kind.layers) == ("vanishing_signal", tuple(range(12)), 12, ("layers.0",))
    assert kind.sentence.startswith("In 12 of 64 runs, such as run 0: The gradient that reaches layers.0 is 1e-05 of that at layers.33: it falls by a factor of 0.5 a layer")
    assert [one.run for one in found.runs] == [*range(12), 20]
    assert next(one for one in found.symptoms if one.symptom == "plateau").root_of == 0


def test_of_equally_many_roots_the_first_in_causal_order_is_named() -> None:
    found = diagnose([noticed("no_change", run=1), noticed("saturated", run=0)], runs=2, preset="full")
    assert found.root == "saturated"


@pytest.mark.parametrize("name", BY_NAME)
def test_a_sentence_lacks_no_more_than_its_figures(name: SymptomName) -> None:
    """Also where an older worker stored less than is asked for."""
    assert sentence(noticed(name))
