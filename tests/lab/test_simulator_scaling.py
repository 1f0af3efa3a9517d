"""Servers that come and go in the simulator, by the cluster's own word, and what one queue would be worth."""

from __future__ import annotations

from itertools import pairwise

import pytest

from triptych import InvalidRequest
from triptych_cluster import scaling
from triptych_lab.simulator import Scaling, simulate, simulation
from triptych_lab.workload import Mix, make

from .farms import arrival, cost, farm, planner

MIX = Mix({"num_inference_steps": (2, 8, 20, 50)})


def over(count, rate, least, most, **options):
    given = {"target_s": 2.0, "pause_s": 5.0, "start_s": 3.0, **options}
    made = farm(cost(), least, balancer="least-seconds", scaling=Scaling(most, **given))
    return simulate(make(MIX, rate=rate, count=count), planner(), made)


def test_it_is_the_clusters_own_word():
    assert simulation.wanted is scaling.wanted


def test_servers_follow_the_work_and_everything_ends_once():
    report = over(2000, 12.0, 1, 8)
    assert report["completed"] == report["requests"] == 2000
    assert 2 <= report["most_servers"] <= 8
    assert 1 < report["mean_servers"] < report["most_servers"]
    assert report["starts"] >= report["most_servers"] - 1


def test_little_work_keeps_the_fewest():
    report = over(200, 0.2, 2, 8)
    assert (report["mean_servers"], report["most_servers"], report["starts"]) == (2.0, 2, 0)


def test_they_go_after_a_pause_of_less_work():
    burst = [arrival(0.0, 50) for _ in range(60)]
    quiet = [arrival(10.0, 2) for _ in range(60)]
    made = farm(cost(), 1, balancer="least-seconds", scaling=Scaling(8, target_s=2.0, pause_s=5.0, start_s=1.0))
    report = simulate([*burst, *quiet], planner(), made)
    assert report["completed"] == 120
    assert report["most_servers"] > 2
    assert report["mean_servers"] < 1.4


def test_the_first_request_of_nobody_waits_for_a_start():
    made = farm(cost(), 0, balancer="least-seconds", scaling=Scaling(1, pause_s=5.0, start_s=7.0))
    report = simulate([arrival(0.5, 4), arrival(100.0, 4)], planner(), made)
    alone = simulate([arrival(0.5, 4)], planner(), farm(cost()))["latency_s"]["mean"]
    assert report["starts"] == 2
    # The autoscaler looks once a second.
    assert 7.0 + alone < report["latency_s"]["mean"] <= 8.0 + alone


def test_slow_starts_cost_those_who_come_with_a_burst():
    cold, warm = (over(1500, 12.0, 1, 8, start_s=start)["latency_s"]["p99"] for start in (20.0, 0.0))
    assert cold > 1.5 * warm


def test_one_queue_is_what_balancers_are_measured_by():
    p99 = {}
    for balancer in ("one-queue", "least-seconds", "two-choices", "round-robin"):
        arrivals = make(MIX, rate=60.0, count=6000)
        p99[balancer] = simulate(arrivals, planner(), farm(cost(), 8, balancer=balancer))["latency_s"]["p99"]
    assert all(
        better < worse
        for better, worse in pairwise(p99[name] for name in ("least-seconds", "two-choices", "round-robin"))
    )
    assert p99["one-queue"] < p99["two-choices"]


@pytest.mark.parametrize(("least", "most"), [(3, 2), (0, 0), (1, 65), (-1, 2)])
def test_impossible_numbers_of_servers_are_refused(least, most):
    with pytest.raises(InvalidRequest, match="servers: "):
        farm(cost(), least, scaling=Scaling(most))
