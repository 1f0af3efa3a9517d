"""The cost model: straight lines between measured points, medians, sizes that were not measured; what is wrong is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import InvalidRequest
from triptych_lab.simulator import BALANCERS, CostModel, Farm, Planner, simulate
from triptych_lab.simulator.server import ServerSpec

from .farms import arrival, cost, farm, flat, planner

POINT = {"denoiser": "unet", "height": 16, "width": 16, "rows": 2, "seconds": 0.02}


def load(tmp_path, document):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(document))
    return CostModel.load(path)


def test_between_two_points_it_is_a_straight_line_and_beyond_the_last_the_same_line():
    model = CostModel([("unet", 256, 2, 0.02), ("unet", 256, 4, 0.03), ("unet", 256, 8, 0.07)])
    seconds = [model.seconds("unet", rows, 256) for rows in (1, 2, 3, 4, 6, 8, 10)]
    assert seconds == pytest.approx([0.02, 0.02, 0.025, 0.03, 0.05, 0.07, 0.09])


def test_of_several_measurements_the_median_counts_and_no_batch_takes_less_than_a_smaller_one():
    points = [("unet", 256, 1, seconds) for seconds in (0.01, 0.5, 0.02)] + [("unet", 256, 2, 0.015)]
    model = CostModel(points)
    assert model.seconds("unet", 1, 256) == 0.02
    assert model.seconds("unet", 2, 256) == 0.02


def test_a_size_that_was_not_measured_costs_the_rows_that_have_its_pixels():
    model = CostModel([("unet", 256, rows, 0.01 * rows) for rows in (1, 2, 4, 8)] + [("unet", 65536, 1, 5.0)])
    assert model.seconds("unet", 2, 512) == pytest.approx(0.04)
    assert model.seconds("unet", 1, 60000) == 5.0


@given(
    st.dictionaries(st.integers(1, 32), st.floats(1e-4, 10), min_size=1),
    st.integers(1, 64),
    st.sampled_from([64, 256, 1000, 4096]),
)
def test_more_rows_never_take_less(measured, rows, pixels):
    model = CostModel([("unet", 256, count, seconds) for count, seconds in measured.items()])
    assert 0 < model.seconds("unet", rows, pixels) <= model.seconds("unet", rows + 1, pixels) * (1 + 1e-12)


def test_a_model_that_was_not_measured_is_named():
    with pytest.raises(InvalidRequest, match=r"points: none of refiner_unet given; legal: .* as unet"):
        flat(0.01).seconds("refiner_unet", 1, 256)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 0}, r"points\[1\]\.rows: 0 given; legal: a whole number from 1"),
        ({"rows": 1.5}, r"points\[1\]\.rows: 1\.5 given"),
        ({"height": True}, r"points\[1\]\.height: true given"),
        ({"seconds": 0}, r"points\[1\]\.seconds: 0 given; legal: seconds, above 0"),
        ({"seconds": "fast"}, r'points\[1\]\.seconds: "fast" given'),
        ({"seconds": float("inf")}, r"points\[1\]\.seconds: Infinity given"),
        ({"denoiser": None}, r"points\[1\]: .* given; legal: an object with denoiser"),
    ],
)
def test_a_wrong_point_is_named(tmp_path, change, words):
    with pytest.raises(InvalidRequest, match=words):
        load(tmp_path, {"points": [POINT, {**POINT, **change}]})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "points: none in"),
        ({"points": []}, "points: none in"),
        ({"points": [5]}, r"points\[0\]: 5 given"),
        ({"points": [POINT], "encode_s": -1}, "encode_s: -1 given; legal: seconds, 0 or more"),
        ({"points": [POINT], "decode_s": "long"}, 'decode_s: "long" given'),
        ({"points": [POINT], "shared": 1}, "shared: 1 given; legal: true or false"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, document, words):
    with pytest.raises(InvalidRequest, match=words):
        load(tmp_path, document)


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "c.json").write_text("rows seconds\n1 0.1\n")
    with pytest.raises(InvalidRequest, match=r"cost: .*c\.json, no JSON"):
        CostModel.load(tmp_path / "c.json")


# What a simulation refuses, and in whose words.


@pytest.mark.parametrize("servers", [0, 65])
def test_a_farm_has_1_to_64_servers(servers):
    with pytest.raises(InvalidRequest, match=f"servers: {servers} given; legal: 1 to 64"):
        farm(servers=servers)


def test_a_balancer_that_nobody_knows_is_refused():
    with pytest.raises(InvalidRequest, match="balancer: 'luck' given; legal: " + ", ".join(BALANCERS)):
        Farm(ServerSpec(cost()), 2, "luck")


def test_what_the_server_would_refuse_is_refused_in_its_words():
    with pytest.raises(InvalidRequest, match="num_inference_steps: 1000 given; legal: "):
        simulate([arrival(1, 1000)], planner(), farm())


def test_a_picture_to_begin_with_cannot_be_simulated():
    with pytest.raises(InvalidRequest, match="init_image: a picture given"):
        simulate([arrival(1, 4, init_image="a.png")], planner(), farm())


def test_no_build_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match=r"build: .* given; legal: a folder that `triptych export` made"):
        Planner(tmp_path)


def test_larger_pictures_can_be_planned_for_with_another_builds_tables():
    from triptych_demo import demo_build

    large = arrival(0, 3, height=1024, width=1024, guidance_scale=5.0)
    with pytest.raises(InvalidRequest, match="height: 1024 given"):
        simulate([large], planner(), farm())
    model = CostModel([("unet", 128 * 128, rows, 0.1 * rows) for rows in (1, 2)])
    report = simulate([large], Planner(demo_build(), max_size=1024), farm(model))
    assert report["latency_s"]["mean"] == pytest.approx(0.6)


def test_a_full_queue_refuses_and_a_deadline_ends():
    over = farm(flat(0.1), max_batch_rows=2, max_queue_seconds=0.5)
    report = simulate([arrival(0.01, 10, guidance_scale=5.0) for _ in range(30)], planner(), over)
    assert report["rejected"] > 20
    late = simulate([arrival(0, 10, deadline_ms=450)], planner(), farm(flat(0.1)))
    assert (late["expired"], late["batches"]) == (1, {"2": 5})


def test_a_warm_up_is_served_and_not_counted():
    report = simulate([arrival(1, 4) for _ in range(10)], planner(), farm(flat(0.01)), warmup_s=5.5)
    assert (report["requests"], sum(report["batches"].values())) == (5, 40)
    assert report["offered_per_s"] == pytest.approx(5 / 4.5)
