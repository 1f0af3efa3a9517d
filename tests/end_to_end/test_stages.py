"""kill -9 of each model's process but the loop's, under load: it alone is replaced, and no caller of our client notices."""

from __future__ import annotations

import asyncio
import io
import queue
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from triptych import AsyncClient
from triptych_demo import demo_builds
from triptych_server import Server, State, supervisor
from triptych_server.layout import RECORDS, RUN_PREFIX, SHM
from triptych_serving import record

from .. import plain

pytestmark = pytest.mark.serial

# One of a kind; `make chaos` kills all of them.
STAGES = ("tokenizer", "text_encoder", "vae_encoder", "vqgan", "image_encoder")
START = io.BytesIO()
Image.linear_gradient("L").convert("RGB").save(START, "PNG")


def wanted():
    """Requests of both families: (model, inputs)."""
    for k in range(2):
        yield "sdxl", {"prompt": "a fox", "seed": k, "num_inference_steps": 12 + 12 * k, "init_image": START.getvalue()}
        yield "sdxl", {"prompt": "a penguin", "seed": k, "num_inference_steps": 6 + 24 * k}
        yield "stable_cascade", {"prompt": "a 3d robot", "seed": k, "num_inference_steps": 4 + 8 * k}


class Run:
    """A server with the demo models, what it tells, and what it answers when nobody is killed."""

    def __init__(self, server, told):
        self.server, self.told = server, told
        self.regions_before = len(self.regions())
        self.alone, self.rows = asyncio.run(self.draw())

    def folder(self):
        """The server's own."""
        path = Path(stub("denoise").cmdline()[0])
        return next(folder for folder in path.parents if folder.name.startswith(RUN_PREFIX))

    def regions(self):
        """The shared memory of the server's models."""
        return [*SHM.glob(f"{self.folder().name}_*")]

    def taken(self, model):
        """How many requests this model has or had, at least."""
        counts = record.read(self.folder() / RECORDS)[model]
        return counts.executed + counts.owed

    async def draw(self, kill=None):
        """The files of all requests, sent at once, and the rows that the loop made for them; `kill` once the first is drawn."""
        url = self.server.addresses.grpc
        before = plain.verb(url, "stats")["rows_total"]
        async with AsyncClient(url) as sdxl, AsyncClient(url, model="stable_cascade") as cascade:
            clients = {"sdxl": sdxl, "stable_cascade": cascade}
            jobs = [clients[model].submit(**inputs, use_cache=False) for model, inputs in wanted()]
            if kill:
                await asyncio.wait([job.task for job in jobs], return_when=asyncio.FIRST_COMPLETED)
                kill()
            images = await asyncio.gather(*(job.get() for job in jobs))
        return [image.data for image in images], plain.verb(url, "stats")["rows_total"] - before


@pytest.fixture(scope="module")
def run():
    told = queue.SimpleQueue()
    with Server(demo_builds(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, on_event=told.put) as server:
        yield Run(server, told)


def stub(model):
    """The process of a model of the newest server."""
    return max(filter(lambda process: _serves(process, model), _descendants()), key=psutil.Process.create_time)


def _descendants():
    return psutil.Process().children(recursive=True)


def _serves(process, model):
    try:
        return f"/{model}/1/model.py" in " ".join(process.cmdline())
    except psutil.Error:  # one that was killed
        return False


def next_event(told, state):
    while (event := told.get(timeout=60)).state != state:
        assert event.state != State.RESTARTING, event.text
    return event


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_is_replaced_and_nobody_notices(run, stage):
    images, rows = asyncio.run(run.draw(kill=lambda: stub(stage).kill()))
    assert f"the process of model {stage!r} died" in next_event(run.told, State.REPLACING).text
    assert f"model {stage!r} is back" in next_event(run.told, State.READY).text
    assert images == run.alone
    assert rows == run.rows
    assert len(run.regions()) == run.regions_before


def test_one_that_dies_while_another_is_replaced_is_noticed_as_soon(run):
    stub("vqgan").kill()
    next_event(run.told, State.REPLACING)
    stub("image_encoder").kill()
    next_event(run.told, State.READY)
    assert "the process of model 'image_encoder' died" in run.told.get(timeout=60).text
    next_event(run.told, State.READY)


def test_a_plain_caller_is_told_to_send_again_and_with_the_same_id_nothing_is_drawn_again(run):
    url, id = run.server.addresses.grpc, str(uuid.uuid4())
    long = {"prompt": "a fox", "seed": 3, "num_inference_steps": 100}
    before = plain.verb(url, "stats")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(plain.grpc, url, id, **long)
        assert plain.verb(url, "watch", id=id)["status"] in ("queued", "running")
        stub("vae_decoder").kill()
        lost = asked.exception()
    assert (lost.status(), "lost: the process of model 'vae_decoder'" in lost.message()) == (
        "StatusCode.UNAVAILABLE",
        True,
    )
    next_event(run.told, State.REPLACING)
    next_event(run.told, State.READY)
    image = plain.grpc(url, id, **long)["image"]
    now = plain.verb(url, "stats")
    assert now["resumed_total"] - before["resumed_total"] == 1
    assert now["rows_total"] - before["rows_total"] == 200
    assert plain.grpc(url, **long)["image"] == image


@pytest.mark.parametrize("stage", ["vae_encoder", "tokenizer"])
def test_a_reader_that_is_killed_over_a_picture_loses_no_caller_and_restarts_nothing(run, stage):
    large = io.BytesIO()
    Image.effect_noise((3000, 3000), 50).convert("RGB").save(large, "PNG", compress_level=1)
    sent = {
        "seed": 1,
        "num_inference_steps": 4,
        "height": 64,
        "width": 64,
        "init_image": large.getvalue(),
        "strength": 1.0,
    }

    async def draw(kill):
        before = run.taken(stage)
        async with AsyncClient(run.server.addresses.grpc) as client:
            jobs = [client.submit("a fox", **sent, use_cache=False) for _ in range(3)]
            if kill:
                while run.taken(stage) == before:
                    await asyncio.sleep(0.001)
                stub(stage).kill()
            return [(await job.get()).data for job in jobs]

    alone = asyncio.run(draw(kill=False))
    assert asyncio.run(draw(kill=True)) == alone
    next_event(run.told, State.REPLACING)
    next_event(run.told, State.READY)


def test_one_that_dies_again_and_again_is_replaced_alone_until_triton_keeps_too_many_dead(run, monkeypatch):
    for _ in range(6):
        stub("image_encoder").kill()
        next_event(run.told, State.REPLACING)
        next_event(run.told, State.READY)
    monkeypatch.setattr(supervisor, "MOST_REPLACED", run.server._replaced)
    stub("image_encoder").kill()
    assert "can be replaced alone" in run.told.get(timeout=60).text
    next_event(run.told, State.READY)
    assert run.server._replaced == 0
