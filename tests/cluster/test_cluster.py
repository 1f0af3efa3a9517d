"""Three servers on three Ray nodes behind three doors: every request ends once, as it would on one server."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event

import openai
import psutil
import pytest
from tritonclient.utils import InferenceServerException

from triptych import Client
from triptych_api.app import Options as Front
from triptych_cluster.deployments import Serving

from .. import plain
from ..end_to_end.test_perf_analyzer import BINARY, MISSING
from ..fronts import TRIPTYCH, until
from .conftest import NODE, deployed, free_port

REQUESTS = int(os.environ.get("TRIPTYCH_CLUSTER_REQUESTS", "60"))
VERBS = int(os.environ.get("TRIPTYCH_CLUSTER_VERBS", "60"))
pytestmark = pytest.mark.serial  # Ray Serve takes its own parts for dead where they are slow to start
REPLICA = "ray::ServeReplica:triptych-servers"
QUICK = {"width": 64, "height": 64}
LONG = {"prompt": "a 3d rocket", "width": 256, "height": 256, "num_inference_steps": 100}


@pytest.fixture(scope="module")
def http():
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def status(cluster, http):
    front = Front(port=int(http.rpartition(":")[2]))
    options = {"servers": (3, 3), "doors": 3, "front": front, "serving": Serving(cache_mb=0)}  # every picture is drawn
    with deployed(cluster, **options) as status:
        until(lambda: len(status().servers) == len(status().doors) == 3 and status().fronts, 180)
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


def test_a_picture_over_http_is_the_same(doors, http, url):
    assert over_http(http)(1) == over_grpc(doors[0])(1) == plain.grpc(url, **asked(1))["image"]


def test_the_command_line_draws_as_on_one_server(doors, url, tmp_path):
    for name, address in (("cluster", doors[0]), ("one", url)):
        options = ["--url", address, "-n", "2", "--seed", "3", "--num-inference-steps", "4", "-o", tmp_path / name]
        subprocess.run([*TRIPTYCH, "generate", "a fox", *map(str, options)], check=True, timeout=120)
    drawn, expected = ({one.read_bytes() for one in (tmp_path / name).iterdir()} for name in ("cluster", "one"))
    assert len(drawn) == 2
    assert drawn == expected


@pytest.mark.skipif(not BINARY, reason=MISSING)
def test_perf_analyzer_drives_a_door(doors):
    command = [BINARY, "-m", "sdxl", "-i", "grpc", "-u", doors[0], "--request-count", "6", "--concurrency-range", "3"]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as data:
        json.dump({"data": [{"prompt": ["a fox"], "num_inference_steps": [3], "seed": [7]}]}, data)
        data.flush()
        done = subprocess.run([*command, "--input-data", data.name], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "throughput" in done.stdout


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


class Load:
    """Requests through doors and over HTTP in turn, by clients that try again, until there were enough of them.

    Args:
        draws: each draws the picture of a seed.
        url: of the one server whose bytes are the right ones.
    """

    def __init__(self, draws, url):
        self._expected = {seed: plain.grpc(url, **asked(seed))["image"] for seed in range(8)}
        self._draws, self._numbers, self._enough = draws, count(), Event()
        self.equal = []

    def __enter__(self):
        self._pool = ThreadPoolExecutor(12)
        self._running = [self._pool.submit(self._go_on) for _ in range(12)]
        return self

    def _go_on(self):
        while (number := next(self._numbers)) < REQUESTS or not self._enough.is_set():
            drawn = self._draws[number % len(self._draws)](number % 8)
            self.equal.append(drawn == self._expected[number % 8])

    def more(self, number):
        """Wait until so many more have been answered."""
        wanted = len(self.equal) + number
        until(lambda: len(self.equal) >= wanted or any(one.done() for one in self._running), 300)

    def __exit__(self, *_):
        self._enough.set()
        self._pool.shutdown()
        for one in self._running:
            one.result()  # whatever was refused for good
        assert len(self.equal) >= REQUESTS
        assert all(self.equal)


def over_grpc(address):
    def draw(seed):
        with Client(address, timeout=300) as client:
            return client.generate(**asked(seed)).data

    return draw


def over_http(address):
    sdk = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=60, timeout=300)

    def draw(seed):
        given = dict(asked(seed))
        size = f"{given.pop('width')}x{given.pop('height')}"
        answer = sdk.images.generate(prompt=given.pop("prompt"), size=size, extra_body=given)
        return base64.b64decode(answer.data[0].b64_json)

    return draw


@pytest.mark.parametrize("kind", ["tritonserver", ""])
def test_whoever_dies_loses_nobody_a_request(doors, http, status, url, kind):
    with Load([over_grpc(doors[0]), over_http(http), over_grpc(doors[1]), over_http(http)], url) as load:
        load.more(REQUESTS // 6)
        lost = replicas(kind)[0]
        lost.kill()
        lost.wait()
        load.more(12)
    until(lambda: len(status().servers) == 3, 180)


@pytest.mark.usefixtures("doors")
def test_a_node_that_is_lost_takes_no_request_with_it(cluster, status, http, url):
    lost = cluster.list_all_nodes()[-1]
    safe = [over_grpc(door["address"]) for door in status().doors.values() if door["node"] != lost.node_id]
    with Load([draw for one in safe for draw in (one, over_http(http))], url) as load:
        load.more(REQUESTS // 6)
        cluster.remove_node(lost, allow_graceful=False)
        load.more(12)
    cluster.add_node(**NODE)
    until(lambda: len(status().servers) == 3, 180)
