"""How a round's pictures are shared among methods."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.portfolio import MOST, SURELY, Earned, earned, nats, shared, weighed
from recognizer.readings import Reading


def readings(*losses: float) -> list[Reading]:
    return [Reading("x", 0.5, (), nll) for nll in losses]


def test_what_a_trial_earned_is_a_paired_difference_with_its_error() -> None:
    found = earned([readings(1.0, 2.0, 3.0)], readings(0.5, 1.0, 3.5))
    gains = np.array([0.5, 1.0, -0.5])
    assert found.nats == pytest.approx(gains.mean()) and found.error == pytest.approx(gains.std(ddof=1) / 3**0.5)
    assert found.z == pytest.approx(gains.mean() / (gains.std(ddof=1) / 3**0.5))
    assert earned([readings(1.0, 1.0)], readings(1.0, 1.0)).z == 0
    assert earned([readings(math.inf, 1.0)], readings(40.0, 1.0)) == (0.0, 0.0), f"over {MOST} nats all are alike"


def test_what_another_seed_alone_earns_counts_as_chance() -> None:
    alone = [readings(1.0, 2.0, 3.0), readings(1.5, 2.5, 3.5)]
    found = earned(alone, readings(0.75, 1.75, 2.75))
    assert found.nats == pytest.approx(0.5), "over the mean of both"
    # every picture gained alike; two seeds are .5 apart: variance .125, once for the trial and half for the mean
    assert found.error == pytest.approx((0.125 * 1.5) ** 0.5)


def test_weights_follow_what_was_earned_and_add_up_over_rounds() -> None:
    even = {"a": 1.0, "b": 1.0, "c": 1.0}
    once = weighed(even, {"a": Earned(0.2, 0.1), "b": Earned(0.0, 0.1), "c": Earned(-0.1, 0.1)})
    assert sum(once.values()) == pytest.approx(1)
    assert once["a"] / once["b"] == pytest.approx(math.exp(2)) and once["b"] / once["c"] == pytest.approx(math.e)
    twice = weighed(once, {name: Earned(0.1, 0.1) for name in once})
    assert twice == pytest.approx(once), "all earned alike"
    sure = weighed(even, {"a": Earned(9.0, 1e-9), "b": Earned(0.0, 1.0), "c": Earned(0.0, 1.0)})
    assert sure["a"] / sure["b"] == pytest.approx(math.exp(SURELY)), "one round decides no more than so much"
    assert weighed({"a": 0.25, "b": 0.75}, {}) == {"a": 0.25, "b": 0.75}


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_every_picture_is_given_to_one_method(count: int) -> None:
    weights = {"a": 0.2, "b": 0.5, "c": 0.3}
    given = shared(count, weights)
    assert list(given) == ["a", "b", "c"] and sum(given.values()) == count
    assert all(abs(given[name] - count * w) <= 1 for name, w in weights.items())


def test_how_unlikely_labels_are_held_is_bounded() -> None:
    unsure, sure = (
        nats([Reading("x", 0.5, (), n) for n in losses]).mean() for losses in ((0.1, 0.9, 9.0), (0.1, 0.5, math.inf))
    )
    assert sure < unsure, f"over {MOST} nats all are alike"
