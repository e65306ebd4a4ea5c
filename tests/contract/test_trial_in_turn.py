"""Remedies in turn: who trains when, by counting runs by hand over every small case, and what the order can never do to a verdict."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from regtrain.contract.symptoms import SymptomName
from regtrain.contract.trial import Contestant, Order, Trial, judged, trains, turn_of, wave_of

CONTROL = "as it is"
GAINS: dict[str, list[float]] = {
    "cure": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2],
    "ill": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2],
    "worse": [-0.5, 0.1, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2],
    "weak": [0.5, 0.6, -0.7, -0.8, -0.9, 0.1, 0.2, 0.3],
}
"""Kinds of contestants, by how much better than the control each seed is; `ill` shows the symptom with every seed. In turn `ill` and `worse` are seen through with
two seeds; `weak` is not better with eight."""
COST = {"cure": 8, "ill": 2, "worse": 2, "weak": 8}
"""Runs in turn, of eight seeds."""


def trial(order: Order = "in_turn", symptom: SymptomName | None = "vanishing_signal") -> Trial:
    return Trial(of="job_1", symptom=symptom, control=CONTROL, order=order)


def whole(label: str, kind: str) -> Contestant:
    """All that its runs would show."""
    return Contestant(label, tuple(10 - gain for gain in GAINS[kind]), (kind == "ill",) * 8)


def field(remedies: Sequence[str], randoms: Sequence[str] = (), *, shown: int = 8) -> list[Contestant]:
    control = Contestant(CONTROL, (10.0,) * 8, tuple(seed < shown for seed in range(8)))
    return [control, *(whole(f"{place} {kind}", kind) for place, kind in enumerate(remedies)), *(whole(f"random {place} {kind}", kind) for place, kind in enumerate(randoms))]


def held(of: Trial, contestants: Sequence[Contestant], *, seeds: int = 8, reverse: bool = False, pack: int = 8) -> list[Contestant]:
    """What has been trained when a trial has ended, if every run shows what it would: the slow, obvious scheduler. `reverse`: the control stands last; `pack`: so many
    runs at most are asked for at once."""
    placed = list(reversed(contestants) if reverse else contestants)
    turns = {(turn_of(of, one.label, place, seed=seed, seeds=seeds), place, seed // pack): seed for place, one in enumerate(placed) for seed in range(seeds)}
    done = {one.label: one.until(0) for one in placed}
    for (_, place, _), last in sorted(turns.items()):
        one = placed[place]
        if trains(of, list(done.values()), one.label, wave=wave_of(last, seeds, of.order), metric="loss/val", seeds=seeds):
            done[one.label] = one.until(last + 1)
    return [done[one.label] for one in contestants]


def pairs(found: Sequence[Contestant]) -> list[int]:
    return [len(one.metrics) for one in found[1:]]


def said(of: Trial, found: Sequence[Contestant], *, seeds: int = 8) -> dict[str, Any]:
    return judged(of, found, metric="loss/val", seeds=seeds)


def confirmed(of: Trial, found: Sequence[Contestant]) -> set[str]:
    return {verdict["label"] for verdict in said(of, found)["verdicts"] if verdict["verdict"] == "confirmed"}


def until_cured(kinds: Sequence[str]) -> list[int]:
    """Runs of each, by hand: what each costs, and nothing behind the first cure."""
    cured = kinds.index("cure") if "cure" in kinds else len(kinds)
    return [COST[kind] if place <= cured else 0 for place, kind in enumerate(kinds)]


EVERY = [kinds for n in (1, 2, 3, 4) for kinds in product(GAINS, repeat=n)]


def test_every_order_of_every_kind_costs_what_it_costs_by_hand() -> None:
    """340 trials: a contestant that is seen through leaves with two runs, one that holds has eight, and behind the first cure there are none."""
    for kinds in EVERY:
        found = held(trial(), field(kinds))
        assert pairs(found) == until_cured(kinds), kinds
        first = next((f"{place} {kind}" for place, kind in enumerate(kinds) if kind == "cure"), None)
        assert said(trial(), found)["confirmed"] == first, kinds
        assert len(found[0].metrics) == 8


def test_in_turn_nothing_is_confirmed_that_would_not_be_with_all_runs_of_all() -> None:
    """Holm's correction counts those that were not tried: leaving out withholds verdicts, and makes none."""
    for kinds in EVERY:
        everything = field(kinds)
        assert confirmed(trial(), held(trial(), everything)) <= confirmed(trial(), everything), kinds
    six = field(["cure"] + ["weak"] * 5)
    assert said(trial(), held(trial(), six))["verdicts"][0]["p"] == 6 / 256
    thirteen = field(["cure"] + ["weak"] * 12)
    assert said(trial(), held(trial(), thirteen))["confirmed"] is None  # 13/256 > 0.05: the list is too long for eight pairs, so it goes on, in vain
    assert pairs(held(trial(), thirteen)) == [8] * 13


def test_what_is_drawn_at_random_takes_its_turns_with_at_most_as_many_runs() -> None:
    for remedies, randoms in product(product(GAINS, repeat=2), product(GAINS, repeat=2)):
        found = pairs(held(trial(), field(remedies, randoms)))
        spent, cost = sum(found[:2]), found[2:]
        assert found[:2] == until_cured(remedies)
        assert sum(cost) <= spent
        assert cost[0] == (COST[randoms[0]] if spent >= 8 else 0)  # it enters where all its seeds can be paid
        assert cost[1] == (COST[randoms[1]] if randoms[0] != "cure" and cost[0] + 8 <= spent else 0)


def test_where_the_control_shows_the_symptom_too_rarely_nothing_is_tried() -> None:
    """Five pairs that change have p = 1/32, four 1/16."""
    found = held(trial(), field(["cure"], shown=4))
    assert pairs(found) == [0]
    assert said(trial(), found)["in_words"] == "No remedy was tried: 4 of 8 seeds show vanishing_signal, too few for its absence to mean anything."
    assert pairs(held(trial(), field(["cure"], shown=5))) == [8]
    assert pairs(held(trial(symptom=None), field(["worse", "cure"], shown=0))) == [2, 8]
    assert said(trial(), held(trial(), field(["cure"], shown=0)))["in_words"].startswith("Nothing to cure: with none of 8 seeds")


def test_the_control_comes_first_wherever_it_stands() -> None:
    found = held(trial(), field(["worse", "cure"]), reverse=True)
    assert [len(one.metrics) for one in found] == [8, 0, 8]  # the last of the list is the first of this one


@pytest.mark.parametrize("order", ["in_turn", "together"])
def test_a_wave_that_does_not_fit_into_one_pack_trains_whole_or_not_at_all(order: Order) -> None:
    """What a pack is asked by is what was known before its wave: runs one by one come to the same trial."""
    for remedies, randoms in product(product(GAINS, repeat=3), product(GAINS, repeat=1)):
        everything = field(remedies, randoms)
        assert pairs(held(trial(order), everything, pack=1)) == pairs(held(trial(order), everything)), (remedies, randoms)


def test_together_is_what_it_was() -> None:
    """Of four two go on after two seeds, one after four."""
    of = trial("together")
    assert pairs(held(of, field(["cure", "worse", "ill", "weak"]))) == [8, 2, 2, 4]


def test_verdicts_of_those_that_left_or_never_came() -> None:
    found = said(trial(), held(trial(), field(["ill", "worse", "cure", "cure"])))
    assert [verdict["verdict"] for verdict in found["verdicts"]] == ["left_out", "left_out", "confirmed", "not_tried"]
    last = found["verdicts"][-1]
    assert (last["pairs"], last["shown"], last["metric"], last["difference"], last["p"]) == (0, None, None, None, 1.0)
    assert found["in_words"].endswith("over 8 paired seeds (p = 0.016); 1 remedy was not tried.")  # 4/256
    assert found["order"] == "in_turn"


# ---------------------------------------------------------------- fewer than eight seeds


@pytest.mark.parametrize(("seeds", "quarter"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 1]), (7, [0] + [1] * 6), (9, [0, 0] + [2] * 7)])
def test_in_turn_there_are_two_waves(seeds: int, quarter: list[int]) -> None:
    assert [wave_of(seed, seeds, "in_turn") for seed in range(seeds)] == quarter


@pytest.mark.parametrize("seeds", [1, 2, 3, 7])
def test_few_pairs_confirm_nothing_and_end_with_the_first_that_helps(seeds: int) -> None:
    contestants = [one.until(seeds) for one in field(["ill", "worse", "cure", "cure"])]
    found = held(trial(), contestants, seeds=seeds)
    assert pairs(found) == [1, 1, seeds, 0]
    told = said(trial(), found, seeds=seeds)
    first = "symptom_stays" if seeds == 1 else "left_out"
    assert [verdict["verdict"] for verdict in told["verdicts"]] == [first, "not_better" if seeds == 1 else "left_out", "helps", "not_tried"]
    assert (told["confirmed"], told["helps"]) == (None, "2 cure")


def test_one_pair_that_is_worse_is_no_help() -> None:
    """`weak` is better with seeds 0 and 1, and not with seed 2."""
    assert said(trial(), held(trial(), [one.until(2) for one in field(["weak"])], seeds=2), seeds=2)["helps"] == "0 weak"
    told = said(trial(), held(trial(), [one.until(3) for one in field(["weak"])], seeds=3), seeds=3)
    assert (told["helps"], told["verdicts"][0]["verdict"]) == (None, "not_better")
    assert told["in_words"] == "No remedy helps: none rids the job of vanishing_signal and has a better loss/val than the control with each of 3 paired seeds."


def test_words_of_a_single_pair() -> None:
    one = [contestant.until(1) for contestant in field(["cure", "cure"])]
    assert said(trial(), held(trial(), one, seeds=1), seeds=1)["in_words"] == (
        "0 cure helps: vanishing_signal is gone and loss/val is better than the control's by 0.5 with the same seed; 1 pair cannot confirm it, 8 can; 1 remedy was not tried."
    )
    healthy = [contestant.until(1) for contestant in field(["cure"], shown=0)]
    assert said(trial(), held(trial(), healthy, seeds=1), seeds=1)["in_words"] == "Nothing to cure: with none of 1 seed does the job as it is show vanishing_signal."
