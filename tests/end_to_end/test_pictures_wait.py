"""Large pictures of strangers: whoever brings none does not wait for them, and deadlines hold meanwhile."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from triptych_demo import demo_build
from triptych_server import Server

from .. import plain

pytestmark = pytest.mark.serial

NEIGHBOUR = {"prompt": "a fox", "num_inference_steps": 1}
LARGE = 8


@pytest.fixture(scope="module")
def large():
    """A PNG of a few hundred kB that takes over a second, and a quarter of a gigabyte, to decode."""
    data = io.BytesIO()
    Image.new("RGB", (8000, 8000), "teal").save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def url():
    with Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, grace_s=300) as server:
        yield server.addresses.grpc


def ask(url, large, **others):
    wanted = {**NEIGHBOUR, "height": 64, "width": 64, "init_image": large, "strength": 1.0, **others}
    plain.grpc(url, **wanted)
    return time.monotonic()


def test_a_neighbour_without_a_picture_waits_for_none(url, large):
    with ThreadPoolExecutor(LARGE) as pool:
        strangers = [pool.submit(ask, url, large) for _ in range(LARGE)]
        wait(strangers, return_when="FIRST_COMPLETED")  # all others are on their way by now
        for _ in range(3):
            plain.grpc(url, **NEIGHBOUR)
        answered = time.monotonic()
        assert sum(stranger.result() > answered for stranger in strangers) >= LARGE // 2


def test_a_deadline_holds_behind_the_pictures_of_others(url, large):
    with ThreadPoolExecutor(LARGE + 1) as pool:
        strangers = [pool.submit(ask, url, large) for _ in range(LARGE)]
        wait(strangers, return_when="FIRST_COMPLETED")
        with pytest.raises(InferenceServerException, match="deadline_ms: 500 ms passed at step 0") as late:
            ask(url, large, deadline_ms=500)
        answered = time.monotonic()
        assert late.value.status() == "StatusCode.CANCELLED"
        assert max(stranger.result() for stranger in strangers) > answered
