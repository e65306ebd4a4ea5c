"""The judgement of a trial: exact tests against scipy and against counting, and verdicts by hand."""

from itertools import product
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from scipy import stats

from regtrain.contract.symptoms import SymptomName
from regtrain.contract.trial import Contestant, Trial, differences, fewer, holm, judged, signed_rank, standing, wave_of

CONTROL = "as it is"


def one(label: str, metrics: list[float], shown: list[bool] | None = None) -> Contestant:
    return Contestant(label, tuple(metrics), tuple(shown if shown is not None else [False] * len(metrics)))


def trial(symptom: SymptomName | None = "vanishing_signal") -> Trial:
    return Trial(of="job_1", symptom=symptom, control=CONTROL)


SICK = one(CONTROL, [1.0, 1.1, 0.9, 1.2, 1.0, 1.05, 0.95, 1.15], [True] * 8)


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("n", [1, 5, 8, 12, 30])
def test_the_signed_rank_test_is_scipys_exact_one(n: int) -> None:
    generator = np.random.default_rng(n)
    for shift in (-0.5, 0.0, 0.7):
        gains = (generator.normal(size=n) + shift).tolist()
        assert signed_rank(gains) == pytest.approx(stats.wilcoxon(gains, alternative="greater", method="exact").pvalue, rel=1e-12)


@pytest.mark.parametrize("gains", [[1, 1, 1, -1, 2, 2], [3, -3, 0, 0, 1], [0.5] * 8, [inf, inf, 1, -2], [-inf, 3, 3, 1, -1]])
def test_with_ties_all_signs_are_counted(gains: list[float]) -> None:
    told = [g for g in gains if g]
    ranks = stats.rankdata([abs(g) for g in told])
    seen = sum(rank for rank, g in zip(ranks, told, strict=True) if g > 0)
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in product((0, 1), repeat=len(told))]
    assert signed_rank(gains) == pytest.approx(np.mean([s >= seen for s in sums]))


def test_how_few_pairs_can_say_anything() -> None:
    assert signed_rank([1, 2, 3, 4, 5]) == 1 / 32  # five: never below 0.03
    assert signed_rank([1, 2, 3, 4, 5, 6, 7, 8]) == 1 / 256
    assert signed_rank([-1, 2, 3, 4, 5, 6, 7, 8]) == 2 / 256  # all but the smallest
    assert signed_rank([]) == 1
    assert signed_rank([0, 0, 0]) == 1


def test_the_test_of_shares_is_the_binomial_one_on_pairs_that_changed() -> None:
    before, after = [True] * 7 + [False, False, True], [False] * 7 + [True, False, True]
    assert fewer(before, after) == pytest.approx(stats.binomtest(7, 8, alternative="greater").pvalue)
    assert fewer([True] * 5, [False] * 5) == 1 / 32
    assert fewer([False] * 8, [False] * 8) == 1


def test_holms_correction_by_hand() -> None:
    """0.01·3, then max(0.03, 0.02·2), then max(0.04, 0.03·1)."""
    assert holm({"b": 0.02, "a": 0.01, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.04, "c": 0.04})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_differences_are_positive_where_the_contestant_is_better() -> None:
    assert differences([1.0, 2.0], [0.5, 3.0], higher_is_better=False) == [0.5, -1.0]
    assert differences([1.0, 2.0], [0.5, 3.0], higher_is_better=True) == [-0.5, 1.0]
    assert differences([nan, 1.0, nan, 1.0], [1.0, nan, nan], higher_is_better=False) == [inf, -inf, 0.0]


# ---------------------------------------------------------------- waves


def test_waves_are_a_quarter_of_the_seeds_a_quarter_and_the_rest() -> None:
    """Each by its first seed."""
    assert [wave_of(seed, 8) for seed in range(8)] == [0, 0, 2, 2, 4, 4, 4, 4]
    assert [wave_of(seed, 10) for seed in range(10)] == [0, 0, 2, 2, 4, 4, 4, 4, 4, 4]


def test_of_remedies_and_of_random_contestants_the_better_half_goes_on() -> None:
    control = one(CONTROL, [1.0, 1.0], [True, True])
    others = [
        one("good", [0.5, 0.6]), one("fair", [0.8, 0.9]), one("ill", [0.1, 0.1], [True, True]), one("diverged", [nan, 0.01]), one("bad", [2.0, 2.0]),
        one("random 1", [5.0, 5.0]), one("random 2", [3.0, 3.0]), one("random 3", [nan, nan]),
    ]  # fmt: skip
    assert standing(control, others, seeds=8, higher_is_better=False) == {"good", "fair", "bad", "random 1", "random 2"}
    assert standing(control, others[:1], seeds=8, higher_is_better=False) == {"good"}
    assert standing(control, [], seeds=8, higher_is_better=False) == set()


# ---------------------------------------------------------------- verdicts


def verdicts(
    control: Contestant, *others: Contestant, symptom: SymptomName | None = "vanishing_signal", metric: str = "loss/val", seeds: int = 8
) -> tuple[dict[str, str], dict[str, Any]]:
    found = judged(trial(symptom), [control, *others], metric=metric, seeds=seeds)
    return {v["label"]: v["verdict"] for v in found["verdicts"]}, found


def better(by: float) -> list[float]:
    return [m - by * (1 + k / 100) for k, m in enumerate(SICK.metrics)]


def test_a_remedy_is_confirmed_when_the_symptom_is_gone_and_the_metric_beats_the_control() -> None:
    by, found = verdicts(SICK, one("cure", better(0.5)), one("worse", better(-0.1)))
    assert by == {"cure": "confirmed", "worse": "not_better"}
    assert found["confirmed"] == "cure"
    cure = found["verdicts"][0]
    assert cure["p"] == 2 / 256  # 1/256, the better of two
    assert cure["confidence"] == 254 / 256
    assert cure["difference"] == pytest.approx(0.5 * 1.035)  # mean of 1 + k/100 over k = 0 … 7
    assert (cure["shown"], cure["symptom_p"]) == (0.0, 1 / 256)
    assert found["in_words"].startswith("cure is confirmed: vanishing_signal is gone and loss/val is better than the control's by 0.5175 on average over 8 paired seeds")


def test_a_better_metric_is_no_cure_while_the_symptom_stays() -> None:
    by, found = verdicts(SICK, one("half", better(0.5), [True, True] + [False] * 6))
    assert by == {"half": "symptom_stays"}
    assert found["confirmed"] is None
    assert found["in_words"] == "No remedy helps: none rids the job of vanishing_signal and has a better loss/val than the control over 8 paired seeds at p < 0.05."


def test_one_run_in_eight_may_still_show_it() -> None:
    """Seven of seven pairs changed to the better: 1/128."""
    by, _ = verdicts(SICK, one("nearly", better(0.5), [True] + [False] * 7))
    assert by == {"nearly": "confirmed"}


def test_a_symptom_that_the_control_rarely_shows_decides_nothing() -> None:
    rarely = one(CONTROL, list(SICK.metrics), [True] * 4 + [False] * 4)
    by, _ = verdicts(rarely, one("cure", better(0.5)))
    assert by == {"cure": "undecided"}
    by, found = verdicts(one(CONTROL, list(SICK.metrics)), one("cure", better(0.5)))
    assert by == {"cure": "undecided"}
    assert found["in_words"].startswith("Nothing to cure: with none of 8 seeds")


def test_a_control_that_diverges_is_beaten_by_what_does_not() -> None:
    control = one(CONTROL, [nan] * 8, [True] * 8)
    by, found = verdicts(control, one("tame", [0.5] * 8), symptom="non_finite")
    assert by == {"tame": "confirmed"}
    assert found["verdicts"][0]["difference"] is None
    assert "where the control diverges" in found["in_words"]


def test_who_left_early_counts_in_the_correction_and_is_never_confirmed() -> None:
    """One remedy alone has 1/256; beside five others, left out after two seeds, 6/256; with thirteen in all it could not be confirmed."""
    rest = [one(f"other {n}", better(0.5)[:2]) for n in range(5)]
    _, found = verdicts(SICK, one("cure", better(0.5)), *rest)
    assert found["verdicts"][0]["p"] == 6 / 256
    assert {v["verdict"] for v in found["verdicts"][1:]} == {"left_out"}
    by, _ = verdicts(SICK, one("cure", better(0.5)), *(one(f"other {n}", better(0.5)[:2]) for n in range(12)))
    assert by["cure"] == "not_better"


def test_chance_is_judged_by_itself_and_said_when_it_wins() -> None:
    by, found = verdicts(SICK, one("cure", better(0.2)), one("random 1", better(0.4)), one("random 2", better(-1)))
    assert by == {"cure": "confirmed", "random 1": "confirmed", "random 2": "not_better"}
    assert (found["confirmed"], found["random"]) == ("cure", "random 1")
    assert found["in_words"].endswith("random 1, drawn by chance, is better still.")
    _, found = verdicts(SICK, one("no cure", better(-0.2)), one("random 1", better(0.4)))
    assert found["confirmed"] is None
    assert found["in_words"].endswith("But random 1, drawn by chance, does.")


def test_without_a_symptom_the_metric_alone_decides_and_accuracies_count_upwards() -> None:
    control = one(CONTROL, [0.8] * 8)
    by, found = verdicts(control, one("up", [0.9] * 8), one("same", [0.8] * 8), symptom=None, metric="accuracy/val")
    assert by == {"up": "confirmed", "same": "not_better"}
    assert found["verdicts"][0]["shown"] is None
