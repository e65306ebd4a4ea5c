"""Each criterion beside points made by hand: found in the layer and at the step where it was put, and not found where it was not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy import stats
from symptom_points import STEPS, healthy, known, points, seen

from regtrain.contract.diagnosis import sentence
from regtrain.contract.diagnostics import reads
from worker.training.symptoms import Watch
from worker.training.symptoms.known import Columns
from worker.training.symptoms.slope import fall, t_below, t_quantile

LAYERS = np.arange(5)


def changed(**series: Any) -> dict[str, np.ndarray]:
    """The healthy run with other numbers in some series: `gradient_norm=…`."""
    return healthy() | {name.replace("_", "/", 1): np.asarray(value, float) for name, value in series.items()}


def times(name: str, factor: Any) -> dict[str, np.ndarray]:
    """The healthy run with one series multiplied."""
    return healthy() | {name: healthy()[name] * np.asarray(factor, float)}


def falling(total: float) -> np.ndarray:
    """ln ‖δ‖² of layer 0 over that of layer 3 is `total`, on a straight line; the head's is that of layer 3."""
    return np.exp(total / 2 * (3 - np.minimum(LAYERS, 3)) / 3)


def zeroed(layers: list[int]) -> np.ndarray:
    return np.where(np.isin(LAYERS, layers), 0.0, 1.0)


def flat(level: float) -> np.ndarray:
    return np.full((STEPS, 1), level)


FULL_LOSS = flat(2.2)
HARD_ROWS = np.where((np.arange(STEPS)[:, None] < 10) | (np.arange(STEPS)[:, None] % 50 == 10), 5.0, 1e-3)
SWINGS = np.where(np.arange(STEPS) % 2, 0.5, 2.0)[:, None]
CASES: dict[str, tuple[str, Mapping[str, Any], dict[str, Any], str | None, int | None, float | None]] = {
    # name: symptom, values, facts, layer, step, value
    "uneven columns": ("unscaled_inputs", healthy(), {"columns": Columns(("a", "b"), np.zeros(2), np.array([0.5, 100.0])), "input_rms": 70.7}, None, 0, 200.0),
    "a mean far away": ("unscaled_inputs", healthy(), {"columns": Columns(("a",), np.array([300.0]), np.array([2.0])), "input_rms": 300.0}, None, 0, 150.0),
    "large inputs": ("unscaled_inputs", healthy(), {"columns": Columns(("a", "b"), np.array([90.0, 95.0]), np.array([60.0, 70.0])), "input_rms": 112.0}, None, 0, 112.0),
    "labels as numbers": ("wrong_output", healthy(), {"unordered": 10}, "head", 0, 10.0),
    "first loss": ("poor_first_loss", times("loss/train", 4), {}, "head", 0, 4.0),
    "saturated from the first": ("saturated", healthy() | {"activation/saturated": np.tile([0.1, 0.8, 0.9, 0.9, 0.0], (STEPS, 1, 1))}, {}, "layers.1", 0, 0.8),
    "all weights 0": ("equal_units", times("weight/norm", 0), {}, "layers.0", 0, 0.0),
    "two layers of zeros": ("equal_units", times("weight/norm", zeroed([2, 3])), {}, "layers.2", 0, 0.0),
    "vanishing": ("vanishing_signal", times("signal/backward", falling(-7)), {}, "layers.0", 0, np.exp(-3.5)),
    "exploding": ("exploding_signal", times("signal/backward", falling(7)), {}, "layers.0", 0, np.exp(3.5)),
    "exploding in spite of normalization": ("exploding_signal", times("signal/backward", falling(25)), {"normalized": True}, "layers.0", 0, np.exp(12.5)),
    "decay in front of batch norm": ("penalty_wasted", healthy(), {"wasted": "layers.1"}, "layers.1", 0, 1.0),
    "NaN": ("non_finite", changed(loss_train=np.where(np.arange(STEPS)[:, None] == 40, np.nan, 1.0)), {}, None, 40, 1.0),
    "an infinite entry": ("non_finite", changed(gradient_nonfinite=np.where((np.arange(STEPS)[:, None, None] >= 50) & (LAYERS < 3), 2.0, 0.0)), {}, "layers.2", 50, 6.0),
    "worse than nothing": ("rate_too_high", changed(loss_train=np.where(np.arange(STEPS)[:, None] < 10, 2.3, 23.0)), {}, None, 31, 23 / np.log(10)),
    "weights replaced": (
        "rate_too_high", changed(loss_train=flat(2.303), update_ratio=np.where((np.arange(STEPS)[:, None, None] == 7) & (LAYERS == 2), 5.0, 0.01) * np.ones((STEPS, 1, 5))), {}, "layers.2", 7,
        np.sqrt((25 + 4 * 1e-4) / 5),
    ),
    "learned and lost": ("rate_too_high", {"loss/train": np.where(np.arange(STEPS)[:, None] < 128, 0.5, 2.5)}, {}, None, 255, 2.5 / np.log(10)),
    "a long way to nowhere": ("rate_too_high", changed(loss_train=flat(3.0)), {}, None, 255, 3 / np.log(10)),
    "too sharp": ("rate_too_high", healthy() | {"curvature/sharpness": flat(100.0)}, {"stable": np.array([2.0])}, None, 32, 5.0),
    "vanishing while it trains": (
        "vanishing_gradient", changed(loss_train=FULL_LOSS, signal_backward=falling(-8) * np.ones((STEPS, 1, 5)), gradient_rms=falling(-8) * np.ones((STEPS, 1, 5))), {}, "layers.0", 1, np.exp(-4),
    ),
    "vanishing over time": (
        "vanishing_gradient", changed(loss_train=FULL_LOSS) | {"signal/time": np.ones((STEPS, 1, 1)) * np.concatenate([np.ones(4), np.exp(-0.5 * np.arange(11)[::-1])])},
        {"feedforward": False, "times": (("layers.0", 4), ("layers.1", 11))}, "layers.1", 32, np.exp(-5),
    ),
    "a jump": (
        "exploding_gradient", changed(loss_train=np.where(np.arange(STEPS)[:, None] == 200, 50.0, 1.0), gradient_total=np.where(np.arange(STEPS)[:, None] == 200, 1e3, 2.0)), {}, "layers.0", 200, 500.0,
    ),
    "nothing comes back": (
        "no_gradient", changed(loss_train=FULL_LOSS, gradient_norm=zeroed([0, 1, 2]) * np.ones((STEPS, 1, 5)), signal_backward=zeroed([0, 1]) * np.ones((STEPS, 1, 5))), {}, "layers.1", 1, 0.0,
    ),
    "nothing moves": ("no_change", changed(loss_train=FULL_LOSS, gradient_norm=np.ones((STEPS, 1, 5)), update_ratio=0.01 * zeroed([3]) * np.ones((STEPS, 1, 5))), {}, "layers.3", 1, 0.0),
    "penalties lead": ("penalty_dominates", changed(loss_train=FULL_LOSS) | {"penalty_gradient/norm": 50 * healthy()["gradient/norm"]}, {}, "layers.0", 1, 50.0),
    "penalties empty the net": (
        "penalty_dominates", changed(loss_train=FULL_LOSS, weight_norm=np.where(np.arange(STEPS)[:, None, None] < 1, 1.0, 0.001) * np.ones((STEPS, 1, 5))) | {"penalty_gradient/norm": 0 * healthy()["gradient/norm"]},
        {}, "layers.0", 1, 0.001,
    ),
    "a constraint empties a layer": (
        "penalty_dominates", changed(loss_train=FULL_LOSS, weight_norm=np.where((np.arange(STEPS)[:, None, None] > 0) & (LAYERS == 2), 0.001, 1.0) * np.ones((STEPS, 1, 5))),
        {"constrained": ("layers.1", "layers.2")}, "layers.2", 1, 0.001,
    ),
    "penalties unfelt": ("penalty_invisible", healthy() | {"penalty_gradient/norm": 1e-5 * healthy()["gradient/norm"]}, {}, None, STEPS, 1e-5),
    "penalties in balance": (
        "penalty_fights", changed(loss_train=FULL_LOSS) | {"penalty_gradient/norm": healthy()["gradient/norm"], "penalty_gradient/cosine": np.full((STEPS, 1, 5), -0.95)}, {}, "layers.0", 1, -0.95,
    ),
    "clipped": ("clip_always", healthy() | {"gradient/clipped": np.ones((STEPS, 1))}, {}, None, STEPS, 1.0),
    "swings": ("oscillating", changed(loss_train=SWINGS), {"batch": 640, "per_epoch": 1}, None, 96, 15 * np.log(4)),
    "stands still": ("plateau", changed(loss_train=FULL_LOSS), {}, None, 32, 2.2 / np.log(10)),
    "too slow": ("rate_too_low", changed(loss_train=np.linspace(2.303, 2.29, STEPS)[:, None], gradient_norm=np.ones((STEPS, 1, 5)), update_ratio=np.full((STEPS, 1, 5), 1e-4)), {}, None, STEPS, STEPS * 1e-4),
    "nothing learned": ("underfitting", changed(loss_train=FULL_LOSS), {}, None, STEPS, 2.2 / np.log(10)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "share", "loss", "told"), [(640, 0.8, 2.2, True), (640, 0.75, 2.2, False), (60_000, 0.55, 2.2, True), (60_000, 0.5, 2.2, False), (640, 1.0, 0.1, False)]
)
def test_dead_units_are_those_that_fired_on_no_row(rows: int, share: float, loss: float, told: bool) -> None:
    """0.999^640 = 0.527 of units that fire on 1/1000 of all rows are silent on 640, 0.999^2995 = 0.0499 on 2,995: (0.8 − 0.527)/(1 − 0.527) = 0.577."""
    after = {"activation/silent": ([0, 40], np.tile([0.0, share, 0.0, 0.0, 0.0], (2, 1)))}
    found = [one for one in seen(changed(loss_train=flat(loss)), after=after, rows=rows, per_epoch=max(1, rows // 64)) if one.symptom == "dead_units"]
    assert len(found) == told
    for one in found:
        seen_rows = min(rows, 2995)
        assert (one.layer, one.step) == ("layers.1", 32)
        assert one.value == pytest.approx((share - 0.999**seen_rows) / (1 - 0.999**seen_rows))
        assert one.evidence == {"share": share, "rows": seen_rows, "bound_reached": pytest.approx({640: 0.00467, 2995: 0.0009997}[seen_rows], rel=1e-3)}
        assert "?" not in sentence(one)


@pytest.mark.parametrize("case", CASES)
def test_what_was_put_in_is_found_where_it_was_put(case: str) -> None:
    symptom, values, facts, layer, step, value = CASES[case]
    found = next(one for one in seen(values, **facts) if one.symptom == symptom)
    assert (found.run, found.layer, found.step) == (0, layer, step)
    assert value is None or found.value == pytest.approx(value, rel=1e-6)
    assert 0.5 <= found.confidence <= 1
    assert "?" not in sentence(found)


@pytest.mark.parametrize("case", CASES)
def test_it_is_found_where_layers_are_read_now_and_then(case: str) -> None:
    """With `standard`; what is not finite is read in the update in which it comes up."""
    symptom, values, facts, layer, step, value = CASES[case]
    read = {t for t in range(STEPS) if reads("standard", t)} | ({step} if symptom == "non_finite" and step is not None else set())
    found = next(one for one in seen(values, read=read, **facts) if one.symptom == symptom)
    assert len(read) < 80
    assert (found.run, found.layer, found.step) == (0, layer, step)
    assert value is None or found.value == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("nonzero", "told"), [(31, False), (0, True)])
def test_no_gradient_takes_31_readings_in_a_row(nonzero: int, told: bool) -> None:
    """Dropout may leave nothing of a batch: of 28 updates that were read in a row all may be without a gradient, though others were not."""
    norms = np.where(np.arange(STEPS)[:, None, None] == nonzero, 1.0, 0.0) * np.ones((STEPS, 1, 5))
    found = [one for one in seen(changed(loss_train=FULL_LOSS, gradient_norm=norms), read={t for t in range(STEPS) if reads("standard", t)}) if one.symptom == "no_gradient"]
    assert [one.evidence["steps"] for one in found] == ([31.0] if told else [])


def test_a_healthy_run_has_none() -> None:
    assert seen(healthy()) == []


NEAR: dict[str, tuple[str, Mapping[str, Any], dict[str, Any]]] = {
    "columns of one size": ("unscaled_inputs", healthy(), {"columns": Columns(("a", "b"), np.zeros(2), np.array([1.0, 90.0])), "input_rms": 20.0}),
    "a head of zeros": ("equal_units", times("weight/norm", zeroed([4])), {}),
    "residual blocks of zeros": ("equal_units", times("weight/norm", 0), {"residual": True}),
    "He's first loss of two classes": ("poor_first_loss", times("loss/train", 4), {"first_bound": 1 + np.log(100) / np.log(2)}),
    "He's first loss": ("poor_first_loss", times("loss/train", 2.5), {}),
    "a shallow fall": ("vanishing_signal", times("signal/backward", falling(-5.9)), {}),
    "a fall on no line": ("vanishing_signal", times("signal/backward", [0.03, 3.0, 1.0, 1.0, 1.0]), {}),
    "batch norm's rise": ("exploding_signal", times("signal/backward", falling(13)), {"normalized": True}),
    "zero gradients of a solved problem": ("no_gradient", times("loss/train", 1e-3) | {"gradient/norm": np.zeros((STEPS, 1, 5))}, {}),
    "small updates of a solved problem": ("no_change", times("loss/train", 1e-3) | {"update/ratio": np.zeros((STEPS, 1, 5))}, {}),
    "warm-up": ("no_change", healthy() | {"learning_rate": np.linspace(1e-9, 0.1, STEPS)[:, None], "update/ratio": np.zeros((STEPS, 1, 5))}, {}),
    "decay beside Adam": ("penalty_dominates", changed(loss_train=FULL_LOSS) | {"penalty_gradient/norm": 50 * healthy()["gradient/norm"]}, {"decoupled": True}),
    "the balance of a trained net": (
        "penalty_fights",
        healthy() | {"penalty_gradient/norm": healthy()["gradient/norm"], "penalty_gradient/cosine": np.full((STEPS, 1, 5), -0.99)},
        {},
    ),
    "single rows of a learned problem": (
        "exploding_gradient",
        changed(loss_train=HARD_ROWS, gradient_total=2 * HARD_ROWS),
        {},
    ),
    "one loud batch of what was learned": ("rate_too_high", changed(loss_train=np.where(np.arange(STEPS)[:, None] == 200, 50.0, 0.5)), {}),
    "steps that are too short stay above a constant": ("rate_too_high", changed(loss_train=flat(3.0), update_ratio=np.full((STEPS, 1, 5), 1e-5)), {}),
    "a net that needs no more than its last steps": (
        "vanishing_gradient",
        healthy() | {"signal/time": np.ones((STEPS, 1, 1)) * np.exp(-0.5 * np.arange(11)[::-1])},
        {"feedforward": False, "times": (("layers.0", 11),)},
    ),
    "an edge of stability": ("rate_too_high", healthy() | {"curvature/sharpness": flat(30.0)}, {"stable": np.array([2.0])}),
    "a spike of one batch": ("exploding_gradient", times("gradient/total", np.where(np.arange(STEPS)[:, None] == 200, 500.0, 1.0)), {}),
    "noise of small batches": ("oscillating", changed(loss_train=SWINGS), {"batch": 1, "per_epoch": 640}),
    "a start from trained weights": ("poor_first_loss", times("loss/train", 4), {"fresh": False}),
    "an early plateau": ("plateau", changed(loss_train=FULL_LOSS), {"steps": 10_000}),
    "one layer's weights replaced while it learns": ("rate_too_high", healthy() | {"update/ratio": np.full((STEPS, 1, 5), 2.0)}, {}),
    "an early stop": ("underfitting", changed(loss_train=FULL_LOSS), {"steps": 1000}),
}


@pytest.mark.parametrize("case", NEAR)
def test_what_only_looks_like_it_is_not_found(case: str) -> None:
    symptom, values, facts = NEAR[case]
    assert symptom not in {one.symptom for one in seen(values, **facts)}


def test_validation_tells_overfitting_and_swings() -> None:
    at = np.arange(10, STEPS + 1, 10)
    rising = np.interp(at, [0, 60, 256], [2.0, 1.0, 2.0])
    [found] = [one for one in seen(healthy(), after={"loss/val": (at, rising)}) if one.symptom == "overfitting"]
    assert (found.layer, found.severity) == (None, "warning")
    assert found.evidence["best"] == 1.0
    assert not seen(healthy(), after={"loss/val": (at, rising)}, restores=True), "the best weights are given back"
    assert not seen(healthy(), after={"loss/val": (at, np.interp(at, [0, 60, 256], [2.0, 1.0, 1.15]))}), "a tenth is no rise for good"
    swinging = np.where(np.arange(len(at)) % 2, 0.4, 2.0)
    assert [one.symptom for one in seen(healthy(), after={"loss/val": (at, swinging)})] == ["oscillating"]


def test_what_holds_for_no_other_row_is_label_noise() -> None:
    """The training loss of `healthy` falls to a sixteenth of ln 10; the best constant has ln 10 on the held-out rows, too."""
    at = np.arange(10, STEPS + 1, 10)
    facts = {"held": np.array([np.log(10)])}

    def told(lowest: float, **more: Any) -> list[str]:
        return [one.symptom for one in seen(healthy(), after={"loss/val": (at, np.linspace(lowest, lowest + 0.2, len(at)))}, **facts | more)]

    assert told(2.29) == ["label_noise"]
    assert told(2.1) == [], "a tenth of the loss is something"
    assert told(2.29, held=np.array([2.6])) == [], "these rows are harder for a constant, too"
    assert told(2.29, steps=1000) == [], "the budget has not been used"
    assert seen(healthy(), **facts) == [], "no row is held out"


def test_a_rare_class_is_a_symptom_where_it_is_never_answered() -> None:
    at = np.arange(10, STEPS + 1, 10)
    facts = {"class_rows": (1000, 20), "majority": 0.98}
    losses = {"loss/val": (at, np.linspace(1, 0.5, len(at)))}
    assert [one.symptom for one in seen(healthy(), after=losses | {"accuracy/val": (at, np.full(len(at), 0.98))}, **facts)] == ["class_imbalance"]
    assert seen(healthy(), after=losses | {"accuracy/val": (at, np.full(len(at), 0.985))}, **facts) == []


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_scaled_loss_gives_the_same_verdict(case: str, factor: float) -> None:
    """With lr, λ and clip scaled along: losses, gradients and penalties times the factor; weights, updates, ratios as they are."""
    _, values, facts, *_ = CASES[case]
    moved = ("loss/train", "curvature/sharpness", "signal/time", "gradient/norm", "gradient/rms", "gradient/total", "signal/backward", "penalty_gradient/norm")
    scaled = {name: value * factor if name in moved else value / factor if name == "learning_rate" else value for name, value in values.items()}
    losses = {name: known(**facts).__dict__[name] * factor for name in ("nothing", "constant")}

    def verdicts(found: Any) -> list[Any]:
        return [(one.symptom, one.layer, one.step, one.severity, pytest.approx(one.value, rel=1e-9), pytest.approx(one.confidence, rel=1e-9)) for one in found]

    assert verdicts(seen(scaled, **facts | losses)) == verdicts(seen(values, **facts))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cuts", [(1,), (5, 31, 32, 33, 200), tuple(range(1, STEPS, 7))])
def test_how_reports_were_cut_changes_nothing(case: str, cuts: tuple[int, ...]) -> None:
    _, values, facts, *_ = CASES[case]
    assert seen(values, cuts=cuts, **facts) == seen(values, **facts)


@pytest.mark.parametrize("at", [1, 20, 128, 200])
def test_a_watch_goes_on_from_its_state(at: int) -> None:
    """Killed and resumed at any step: the same symptoms, each once."""
    for case in CASES:
        _, values, facts, *_ = CASES[case]
        first, second = Watch(known(**facts)), Watch(known(**facts))
        found = list(first.see(points(values, last=at)))
        second.restore(*first.state())
        found += [*second.see(points(values, first=at)), *second.end(STEPS)]
        assert found == seen(values, **facts), case


def test_points_behind_the_end_of_a_run_are_not_looked_at() -> None:
    values = changed(loss_train=np.where(np.arange(STEPS)[:, None] >= 40, np.nan, 1.0))
    assert {one.symptom for one in seen(values, counts=40)} == set()
    assert {one.symptom for one in seen(values, counts=41)} == {"non_finite"}


def test_what_is_not_recorded_is_not_judged() -> None:
    assert seen({"loss/train": healthy()["loss/train"]}) == []
    found = seen({"loss/train": FULL_LOSS})
    assert {one.symptom for one in found} == {"plateau", "underfitting"}


def test_the_interval_of_a_fall_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    logs = 0.5 * np.arange(12) + rng.normal(size=12)
    line: Any = stats.linregress(np.arange(12), logs)
    found = fall(logs)
    assert found is not None
    assert found.fitted == pytest.approx(-line.slope * 11, rel=1e-12)
    assert found.half == pytest.approx(stats.t.ppf(0.975, 10) * line.stderr * 11, rel=1e-8)
    assert found.confidence(2.0) == pytest.approx(stats.t.cdf((abs(found.fitted) - 2) / (line.stderr * 11), 10), rel=1e-8)
    assert fall(np.array([1.0, 2.0])) is None


@pytest.mark.parametrize("freedom", [1, 2, 5, 32])
def test_students_t(freedom: int) -> None:
    for t in (-3.0, 0.0, 0.7, 12.0):
        assert t_below(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-9)
    assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-7)


def test_each_symptom_is_told_once_a_run() -> None:
    found = seen({"loss/train": np.full((1024, 1), 2.2)}, steps=1024)
    assert sorted(one.symptom for one in found) == ["plateau", "underfitting"]
