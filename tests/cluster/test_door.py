"""A door before the demo's server: what it passes on, and what it answers itself."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest
import pytest_asyncio
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from triptych_cluster.book import Book
from triptych_cluster.door import SERVICE, Door
from triptych_contract.families import DEFAULT

from .. import plain

QUICK = {"prompt": "a fox", "seed": 3, "num_inference_steps": 2, "width": 64, "height": 64}


def told(**addresses):
    return {name: {"address": at, "seconds": 0.0, "row_s": 0.0, "age_s": 0.0} for name, at in addresses.items()}


class Waking:
    """Counts the calls for a first server, which never ends by itself."""

    calls = 0

    async def __call__(self):
        self.calls += 1
        await asyncio.Event().wait()


@pytest_asyncio.fixture
async def door():
    """Book, what wakes servers, address."""
    book, waking = Book(), Waking()
    server, port = await Door(book, waking).listen("127.0.0.1", 0)
    yield book, waking, f"127.0.0.1:{port}"
    await server.stop(0)


async def draw(address, **given):
    async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
        result = await client.infer(DEFAULT.name, plain.inputs(tritonclient.grpc.aio, given))
        return result.as_numpy("image")[0]


async def sent(address, method, message):
    async with grpc.aio.insecure_channel(address) as channel:
        return await channel.unary_unary(f"/{SERVICE}/{method}")(message)


async def test_bytes_pass_as_they_are(door, url):
    book, waking, address = door
    book.tell(told(demo=url))
    assert await draw(address, **QUICK) == (await asyncio.to_thread(plain.grpc, url, **QUICK))["image"]
    assert waking.calls == 0


async def test_a_lost_server_costs_nothing_but_time(door, url):
    book, _, address = door
    book.tell(told(gone="127.0.0.1:1"))
    drawing = asyncio.ensure_future(draw(address, **QUICK))
    with pytest.raises(InferenceServerException) as error:
        await drawing
    assert error.value.status() == "StatusCode.UNAVAILABLE"
    book.tell(told(gone="127.0.0.1:1", left=url))
    assert await draw(address, **QUICK)


async def test_a_request_waits_for_the_first_server_and_calls_for_it(door, url):
    book, waking, address = door
    drawing = asyncio.ensure_future(draw(address, **QUICK))
    while not waking.calls:
        await asyncio.sleep(0)
    assert not drawing.done()
    book.tell(told(first=url))
    assert await drawing
    assert waking.calls == 1


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x2a\x03abc"])
async def test_what_is_no_request_is_refused(door, url, message):
    book, _, address = door
    book.tell(told(demo=url))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await sent(address, "ModelInfer", message)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await draw(address, **QUICK)


async def test_a_verb_about_nobodys_job_is_refused_in_the_servers_words(door, url):
    book, _, address = door
    book.tell(told(demo=url, gone="127.0.0.1:1"))
    nobodys = str(uuid.uuid4())
    with pytest.raises(InferenceServerException, match=f"id: {nobodys} given; legal: the id of"):
        await asyncio.to_thread(plain.verb, address, "watch", id=nobodys)


async def test_answers_to_a_stream_come_one_by_one_and_errors_among_them(door, url):
    book, _, address = door
    book.tell(told(demo=url))

    def request(**given):
        made = service_pb2.ModelInferRequest(model_name=DEFAULT.name)
        for tensor in plain.inputs(tritonclient.grpc.aio, given):
            made.inputs.append(tensor._get_tensor())
            made.raw_input_contents.append(tensor._get_content())
        return made.SerializeToString()

    async def asked():
        for steps in (2, 0, 2):
            yield request(**{**QUICK, "num_inference_steps": steps})

    async with grpc.aio.insecure_channel(address) as channel:
        answers = [
            service_pb2.ModelStreamInferResponse.FromString(one)
            async for one in channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(asked())
        ]
    assert [bool(one.error_message) for one in answers] == [False, True, False]
    assert "num_inference_steps" in answers[1].error_message


async def test_statistics_are_sums_over_all_servers(door, url):
    book, _, address = door
    await asyncio.to_thread(plain.grpc, url, **QUICK)
    question = service_pb2.ModelStatisticsRequest(name="sdxl").SerializeToString()
    one = service_pb2.ModelStatisticsResponse.FromString(await sent(url, "ModelStatistics", question)).model_stats[0]
    book.tell(told(demo=url, again=url, gone="127.0.0.1:1"))
    (both,) = service_pb2.ModelStatisticsResponse.FromString(
        await sent(address, "ModelStatistics", question)
    ).model_stats
    assert (both.name, both.version, both.last_inference) == (one.name, one.version, one.last_inference)
    assert both.inference_count == 2 * one.inference_count > 0
    assert both.inference_stats.success.ns == 2 * one.inference_stats.success.ns
    assert [(each.batch_size, each.compute_infer.count) for each in both.batch_stats] == [
        (each.batch_size, 2 * each.compute_infer.count) for each in one.batch_stats
    ]
    nobodys = service_pb2.ModelStatisticsRequest(name="none").SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError, match="none"):
        await sent(address, "ModelStatistics", nobodys)
