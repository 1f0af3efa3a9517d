"""What must hold of any queue: nothing is lost, nobody idles beside work, Little's law, M/D/1, repeatable runs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych_lab.bench.policies import OneAtATime
from triptych_lab.simulator import Farm, ServerSpec, simulate
from triptych_lab.simulator.balancer import BALANCERS
from triptych_lab.simulator.outcome import Ending
from triptych_lab.workload import Mix, make

from .farms import arrival, cost, farm, flat, planner, server

arrivals = st.lists(
    st.builds(
        arrival,
        st.one_of(st.just(0.0), st.floats(0, 0.5)),
        st.integers(1, 12),
        guidance_scale=st.sampled_from([1.0, 5.0]),
        height=st.sampled_from([96, 128]),
        tenant=st.sampled_from(["", "a", "b"]),
    ),
    min_size=1,
    max_size=40,
)
hurried = st.lists(
    st.builds(arrival, st.floats(0, 0.1), st.integers(1, 12), deadline_ms=st.integers(1, 300)), min_size=1, max_size=40
)
farms = st.builds(
    farm,
    st.builds(cost, encode_s=st.sampled_from([0.0, 0.01]), decode_s=st.sampled_from([0.0, 0.02]), shared=st.booleans()),
    st.integers(1, 5),
    max_batch_rows=st.integers(1, 16),
    max_queue_seconds=st.sampled_from([0.0, 0.2, 1e9]),
    balancer=st.sampled_from(sorted(BALANCERS)),
)


@settings(deadline=None, max_examples=40)
@given(st.one_of(arrivals, hurried), farms)
def test_every_request_ends_exactly_once(requests, over):
    report = simulate(requests, planner(), over)
    assert report["requests"] == len(requests)
    assert sum(report[ending.value] for ending in Ending) == len(requests)
    if over.spec.max_queue_seconds == 1e9 and not any("deadline_ms" in request.parameters for request in requests):
        assert report["completed"] == len(requests)


@settings(deadline=None, max_examples=40)
@given(arrivals, farms)
def test_no_server_idles_beside_work_and_no_batch_exceeds_its_rows(requests, over):
    one, outcome = server(over)
    now = 0.0
    for k, request in enumerate(requests):
        now += request.interval_s
        while one.next_event <= now:
            one.advance()
            assert bool(one.books.jobs) == (one.stretch is not None)
        one.arrive(str(k), planner()(request.parameters), now)
    while one.next_event < math.inf:
        one.advance()
        assert bool(one.books.jobs) == (one.stretch is not None)
    assert max(outcome.batches, default=0) <= max(over.spec.max_batch_rows, 2)  # one request always fits
    if over.spec.max_queue_seconds == 1e9:
        work = sum(sum(phase.walk.batch_rows) for request in requests for phase in planner()(request.parameters).phases)
        assert sum(rows * count for rows, count in outcome.batches.items()) == work


@settings(deadline=None, max_examples=30)
@given(arrivals)
def test_nobody_is_faster_than_alone(requests):
    one, outcome = server(farm(cost(encode_s=0.01, decode_s=0.02)), slo=1 - 1e-9)
    now = 0.0
    for k, request in enumerate(requests):
        now += request.interval_s
        while one.next_event <= now:
            one.advance()
        one.arrive(str(k), planner()(request.parameters), now)
    while one.next_event < math.inf:
        one.advance()
    assert outcome.endings[Ending.COMPLETED] == len(requests)
    assert outcome.good == 0


def test_alone_a_request_takes_its_solo_time():
    over = farm(cost(encode_s=0.01, decode_s=0.02, shared=True))
    report = simulate([arrival(1.0, 20, guidance_scale=5.0)], planner(), over, slo=1 + 1e-9)
    assert report["latency_s"]["mean"] == pytest.approx(0.01 + 20 * 0.008 + 0.02)
    assert report["within_slo"] == 1


def test_a_shared_device_does_the_work_beside_the_loop_as_well():
    """All encoders' and decoders' seconds but the first request's and the last's, which no step is beside."""
    one, outcome = server(farm(flat(0.1, encode_s=0.01, decode_s=0.03, shared=True), max_batch_rows=2))
    for k in range(10):
        one.arrive(str(k), planner()(arrival(0, 5, guidance_scale=5.0).parameters), 0.001 * k)
    while one.next_event < math.inf:
        one.advance()
    assert outcome.batches == {2: 50}
    assert one.busy_s == pytest.approx(50 * 0.1 + 9 * 0.01 + 9 * 0.03)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_row_batches_of_one_step_are_an_m_d_1_queue(load):
    """Pollaczek–Khinchine: with deterministic service D, the mean wait is ρD / 2(1 − ρ)."""
    service = 0.01
    mix = Mix({"num_inference_steps": (1,), "guidance_scale": (1.0,)})
    requests = make(mix, rate=load / service, count=15_000, seed=1)
    report = simulate(requests, planner(), farm(flat(service), max_batch_rows=1))
    wait = load * service / (2 * (1 - load))
    assert report["wait_s"]["mean"] == pytest.approx(wait, rel=0.1)
    assert report["utilisation"] == pytest.approx(load, rel=0.02)
    # A Poisson arrival finds what there is in the mean (PASTA), and by Little's law that is λW.
    assert report["found_outstanding"] == pytest.approx(load / service * report["latency_s"]["mean"], rel=0.1)


def test_littles_law_holds_for_a_farm_of_mixed_requests():
    mix = Mix({"num_inference_steps": (4, 10, 20), "guidance_scale": (1.0, 5.0)})
    rate = 60.0
    over = farm(cost(decode_s=0.02), 4, balancer="least-requests")
    report = simulate(make(mix, rate=rate, count=6_000), planner(), over)
    assert report["found_outstanding"] == pytest.approx(report["offered_per_s"] * report["latency_s"]["mean"], rel=0.05)


def test_the_same_seed_is_the_same_run_and_another_is_not():
    first, again, other = (
        simulate(make(Mix(), rate=20, count=500, seed=seed), planner(), farm(servers=3)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first["latency_s"] != other["latency_s"]


def test_batching_pays_where_the_device_says_so():
    """Rows for nothing: seven requests that come during the first's first step take as long as one from the next on."""
    requests = [arrival(0.001 * (k > 0), 10, guidance_scale=5.0) for k in range(8)]
    together = simulate(requests, planner(), farm(flat(0.01), max_batch_rows=16))
    assert together["batches"] == {"2": 1, "14": 1, "16": 9}
    assert together["latency_s"]["p99"] < 0.12


def test_least_requests_spares_the_short_behind_the_long():
    """Every other request is long: turns give all of those to one of two servers."""
    requests = [arrival(0.05, 100 if k % 2 else 1) for k in range(200)]
    spec = ServerSpec(flat(0.01), 2)
    mean = {
        name: simulate(requests, planner(), Farm(spec, 2, name, OneAtATime))["latency_s"]["p99"] for name in BALANCERS
    }
    assert mean["least-requests"] < mean["round-robin"]
