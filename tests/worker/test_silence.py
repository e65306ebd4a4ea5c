"""Whose counter stands still? Time is given."""

from worker.silence import Silence


def test_only_a_beat_that_stood_still_for_a_whole_lease_is_over() -> None:
    silence = Silence(lease_seconds=30)
    assert silence.over([("a", 1, 7), ("b", 1, 0)], now=100) == []
    assert silence.over([("a", 1, 7), ("b", 1, 1)], now=129.9) == []
    assert silence.over([("a", 1, 7), ("b", 1, 1)], now=130) == [("a", 1, 7)]
    assert silence.over([("a", 1, 8), ("b", 1, 1)], now=159.8) == []
    assert silence.over([("a", 1, 8), ("b", 1, 1)], now=159.9) == [("b", 1, 1)]


def test_a_new_attempt_begins_a_new_lease() -> None:
    silence = Silence(lease_seconds=30)
    silence.over([("a", 1, 0)], now=0)
    assert silence.over([("a", 2, 0)], now=40) == []
    assert silence.over([("a", 2, 0)], now=70) == [("a", 2, 0)]


def test_who_was_not_seen_in_between_is_new() -> None:
    silence = Silence(lease_seconds=30)
    silence.over([("a", 1, 0)], now=0)
    silence.over([], now=10)
    assert silence.over([("a", 1, 0)], now=31) == []
