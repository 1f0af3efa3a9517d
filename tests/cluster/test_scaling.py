"""As many servers as the work asks for, and new ones in place of old ones, without a lost request."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event

import pytest
from ray import serve
from ray.serve.schema import ServeDeploySchema

from triptych import Client
from triptych_cluster import app
from triptych_cluster.app import Options
from triptych_cluster.deployments import Serving
from triptych_demo import demo_build

from .. import plain
from ..fronts import TRIPTYCH, until
from .conftest import NODE, deployed

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


def test_a_machine_that_leaves_has_its_servers_moved_first(cluster):
    with deployed(cluster, servers=(2, 2), on="gate") as status:
        until(lambda: len(status().servers) == 2 and len(status().doors) == 1, 240)
        (door,) = status().doors.values()  # on the head, which stays
        busy = {server["node"] for server in status().servers.values()} - {cluster.head_node.node_id}
        leaving = next(one for one in cluster.list_all_nodes() if one.node_id in busy)
        leave = [
            *TRIPTYCH,
            "cluster",
            "leave",
            "--ray",
            cluster.address,
            "--within",
            "300",
            "--node",
            leaving.node_id[:8],
        ]
        with ThreadPoolExecutor(6) as pool:
            drawing = [pool.submit(draw, door["address"], [seed]) for seed in range(40)]
            assert subprocess.run(leave, timeout=320).returncode == 0
            assert all(server["node"] != leaving.node_id for server in status().servers.values())
            cluster.remove_node(leaving)
            assert len({data for one in drawing for data in one.result()}) == 40
        cluster.add_node(**NODE)
        until(lambda: len(status().servers) == 2, 180)


def test_a_configuration_file_of_ray_serves_deploys_the_same(cluster, url):
    args = {"gpus": 0, "servers": [1, 1], "doors": 1, "port": 0, "metrics_port": 0, "on": "door"}
    names = {"triptych-servers": "servers", "triptych-doors": "doors"}
    applications = [
        {"name": name, "route_prefix": None, "import_path": f"triptych_cluster.applications:{one}", "args": args}
        for name, one in names.items()
    ]
    app.connect(cluster.address)
    serve.start(proxy_location="Disabled")
    serve.context._get_global_client().deploy_apps(ServeDeploySchema(applications=applications))
    try:
        until(lambda: app.status().doors and app.status().servers, 300)
        (door,) = app.status().doors.values()
        assert door["node"] != cluster.head_node.node_id  # which has no place for doors
        assert draw(door["address"], [1]) == [plain.grpc(url, seed=1, **WORK)["image"]]
    finally:
        app.stop()
