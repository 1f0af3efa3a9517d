"""As many servers as the work asks for, and new ones in place of old ones, without a lost request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event

import pytest

from triptych import Client
from triptych_cluster import app
from triptych_cluster.app import Options
from triptych_cluster.deployments import Serving
from triptych_demo import demo_build

from ..fronts import until
from .conftest import deployed

pytestmark = pytest.mark.serial
WORK = {"prompt": "a 3d rocket", "width": 128, "height": 128, "num_inference_steps": 20}
FRONT_S = 300


def draw(address, seeds):
    with Client(address, timeout=FRONT_S) as client:
        return [client.generate(seed=seed, **WORK).data for seed in seeds]


def test_servers_follow_the_work_up_and_down(cluster):
    # A tenth of a second a server: what 24 callers want is work for three of them on a quick machine too.
    with deployed(cluster, servers=(1, 3), target_s=0.1, pause_s=3) as status:
        until(lambda: len(status().doors) == 1, 180)
        (door,) = [door["address"] for door in status().doors.values()]
        enough = Event()

        def draw_on(first):
            seeds = count(first, 24)
            pictures = draw(door, [next(seeds)])
            while not enough.is_set():
                pictures += draw(door, [next(seeds)])
            return pictures

        with ThreadPoolExecutor(24) as pool:
            drawing = [pool.submit(draw_on, first) for first in range(24)]
            try:
                until(lambda: len(status().servers) == 3, 180)
            finally:
                enough.set()
            drawn = [data for one in drawing for data in one.result()]
        assert len(drawn) == len({*drawn}) >= 24
        until(lambda: len(status().servers) == 1, 180)


def test_a_request_wakes_the_first_server(cluster):
    with deployed(cluster, servers=(0, 1), pause_s=3) as status:
        until(lambda: len(status().doors) == 1, 180)
        until(lambda: not status().servers, 240)
        (door,) = [door["address"] for door in status().doors.values()]
        assert draw(door, [1])
        assert len(status().servers) == 1
        until(lambda: not status().servers, 240)


def test_an_update_under_load_loses_nothing(cluster):
    with deployed(cluster, servers=(2, 2)) as status:
        until(lambda: len(status().servers) == 2, 180)
        until(lambda: len(status().doors) == 1, 180)
        old = {*status().servers}
        (door,) = [door["address"] for door in status().doors.values()]
        with ThreadPoolExecutor(6) as pool:
            drawing = [pool.submit(draw, door, [seed]) for seed in range(40)]
            updated = Serving(builds=(str(demo_build()),), cache_mb=1)
            app.start(Options(address=cluster.address, port=0, metrics_port=0, servers=(2, 2), serving=updated))
            until(lambda: len(status().servers) == 2 and not old & {*status().servers}, 240)
            assert len({data for one in drawing for data in one.result()}) == 40
        assert {one["builds"] for one in status().servers.values()} == {str(demo_build())}
