"""Three servers on three Ray nodes behind three doors: every request ends once, as it would on one server."""

from __future__ import annotations

import os
import random
import uuid
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from tritonclient.utils import InferenceServerException

from triptych import Client

from .. import plain
from ..fronts import until
from .conftest import deployed

REQUESTS = int(os.environ.get("TRIPTYCH_CLUSTER_REQUESTS", "60"))
VERBS = int(os.environ.get("TRIPTYCH_CLUSTER_VERBS", "60"))
pytestmark = pytest.mark.serial  # Ray Serve takes its own parts for dead where they are slow to start
REPLICA = "ray::ServeReplica:triptych-servers"
QUICK = {"width": 64, "height": 64}
LONG = {"prompt": "a 3d rocket", "width": 256, "height": 256, "num_inference_steps": 100}


@pytest.fixture(scope="module")
def status(cluster):
    with deployed(cluster, servers=(3, 3), doors=3) as status:
        until(lambda: len(status().servers) == len(status().doors) == 3, 180)
        yield status


@pytest.fixture
def doors(status):
    until(lambda: len(status().servers) == 3, 240)
    return [door["address"] for door in status().doors.values()]


def asked(seed):
    choose = random.Random(seed)
    return {
        **QUICK,
        "prompt": choose.choice(["a fox", "a 3d rocket", "a flat icon of a house"]),
        "seed": seed,
        "num_inference_steps": choose.choice([2, 4, 8, 20]),
        "sampler": choose.choice(["euler", "dpmpp_2m"]),
    }


def test_a_picture_is_what_one_server_draws_through_any_door(doors, url):
    for door in doors:
        assert plain.grpc(door, **asked(1))["image"] == plain.grpc(url, **asked(1))["image"]


def test_errors_have_the_servers_words(doors, url):
    told = []
    for address in (doors[0], url):
        with pytest.raises(InferenceServerException) as error:
            plain.grpc(address, prompt="a fox", num_inference_steps=0, sampler="none")
        told.append((error.value.status(), error.value.message()))
    assert told[0] == told[1]


def test_stats_are_sums_and_a_description_is_any_servers(doors):
    before = plain.verb(doors[0], "stats")["completed_total"]
    for seed, door in enumerate(doors, 200):
        plain.grpc(door, **asked(seed))
    assert plain.verb(doors[1], "stats")["completed_total"] == before + 3
    assert plain.verb(doors[2], "describe")["models"]


def test_what_changes_a_server_is_not_passed_on(doors):
    import tritonclient.grpc

    with tritonclient.grpc.InferenceServerClient(doors[0]) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("sdxl")
        for call in (lambda: client.unload_model("unet"), lambda: client.register_system_shared_memory("a", "/b", 8)):
            with pytest.raises(InferenceServerException) as error:
                call()
            assert error.value.status() == "StatusCode.UNIMPLEMENTED"


def test_verbs_through_any_door_reach_their_job(doors):
    choose = random.Random(1)
    with ThreadPoolExecutor(1) as pool:
        for seed in range(VERBS // 3):
            id = str(uuid.uuid4())
            drawing = pool.submit(plain.grpc, choose.choice(doors), id, seed=seed, **LONG)
            for _ in range(2):
                assert plain.verb(choose.choice(doors), "watch", id=id)["status"] in ("queued", "running")
            assert plain.verb(choose.choice(doors), "cancel", id=id)["cancelled"] is True
            with pytest.raises(InferenceServerException, match="cancelled"):
                drawing.result()


def replicas(kind=""):
    """The cluster's servers, or what is below them and called so; this process has a Triton of its own beside them."""
    own = [one for one in psutil.Process().children(recursive=True) if one.name().startswith(REPLICA)]
    return [one for each in own for one in each.children(recursive=True) if kind in one.name()] if kind else own


@pytest.mark.parametrize("kind", ["tritonserver", ""])
def test_whoever_dies_loses_nobody_a_request(doors, status, url, kind):
    expected = {seed: plain.grpc(url, **asked(seed))["image"] for seed in range(8)}

    def draw(number):
        with Client(doors[number % 3], timeout=300) as client:
            return client.generate(**asked(number % 8)).data

    with ThreadPoolExecutor(12) as pool:
        drawing = [pool.submit(draw, number) for number in range(REQUESTS)]
        until(lambda: sum(one.done() for one in drawing) > REQUESTS // 6, 240)
        replicas(kind)[0].kill()
        assert [one.result() == expected[number % 8] for number, one in enumerate(drawing)] == [True] * REQUESTS
    until(lambda: len(status().servers) == 3, 180)


@pytest.mark.usefixtures("doors")
def test_a_node_that_is_lost_takes_no_request_with_it(cluster, status, url):
    expected = {seed: plain.grpc(url, **asked(seed))["image"] for seed in range(8)}
    lost = cluster.list_all_nodes()[-1]
    safe = [door["address"] for door in status().doors.values() if door["node"] != lost.node_id]

    def draw(number):
        with Client(safe[number % len(safe)], timeout=300) as client:
            return client.generate(**asked(number % 8)).data

    with ThreadPoolExecutor(12) as pool:
        drawing = [pool.submit(draw, number) for number in range(REQUESTS)]
        until(lambda: sum(one.done() for one in drawing) > REQUESTS // 6, 240)
        cluster.remove_node(lost, allow_graceful=False)
        assert [one.result() == expected[number % 8] for number, one in enumerate(drawing)] == [True] * REQUESTS
    cluster.add_node(num_cpus=1)
    until(lambda: len(status().servers) == 3, 180)
