"""What the client knows of the server's model: its card, and a request judged by it before anything is drawn."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from triptych import AsyncClient, Client, InvalidRequest, ServerError
from triptych import async_client as under_test
from triptych_contract.families import FAMILIES, read_card

from .fakes import FakeTransport
from .models import described

SERVED = {"models": {name: described(name) for name in FAMILIES}}


def server(report=SERVED):
    return FakeTransport(reports={"describe": report})


def picture(width, height, orientation=1):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(file, "JPEG", exif=exif)
    return file.getvalue()


async def problems(prompt="a fox", model="sdxl", **parameters):
    async with AsyncClient(transport=server(), model=model) as client:
        try:
            await client.check(prompt, **parameters)
        except InvalidRequest as error:
            return {problem.field: problem.given for problem in error.problems}
    return {}


@pytest.mark.parametrize("model", FAMILIES)
async def test_the_card_is_asked_for_once(model):
    transport = server()
    async with AsyncClient(transport=transport, model=model) as client:
        card = await client.card()
        assert card == read_card(described(model))[1]
        await client.check("a fox")
        assert await client.card() is card
    assert transport.verbs == ["describe"]


@pytest.mark.parametrize(
    "report", [{}, {"family": "flux", "model": {}}, {"family": "sdxl", "model": {"name": "x"}}, {"family": "sdxl"}, 7]
)
async def test_a_card_of_another_version_is_the_servers_error(report):
    async with AsyncClient(transport=server({"models": {"sdxl": report}})) as client:
        with pytest.raises(ServerError, match="the answer is not this version's"):
            await client.card()


async def test_all_that_is_wrong_is_said_at_once():
    wrong = {"num_inference_steps": 0, "sampler": "nope", "width": 100, "seed": "x", "steps": 3, "mask": b"no picture"}
    assert await problems("", **wrong) == {
        "prompt": "an empty text",
        "seed": "'x'",
        "width": "100",
        "num_inference_steps": "0",
        "sampler": "'nope'",
        "mask": "no readable picture (UnidentifiedImageError)",
        "steps": "an unknown parameter",
    }


async def test_what_hangs_on_an_unreadable_picture_is_not_blamed():
    assert set(await problems(init_image="/no/such.png", mask=picture(64, 64), strength=0.5)) == {"init_image"}


@pytest.mark.parametrize("model", FAMILIES)
async def test_a_legal_request_is_judged_and_not_sent(model):
    transport = server()
    async with AsyncClient(transport=transport, model=model, tenant="me") as client:
        await client.check("a fox", seed=3, num_inference_steps=2)
    assert not transport.requests


@pytest.mark.parametrize(("width", "height", "orientation"), [(128, 16, 1), (16, 128, 6)])
async def test_a_picture_is_as_large_as_it_is_looked_at(width, height, orientation):
    found = await problems(init_image=picture(width, height, orientation))
    assert set(found) == {"height"}  # 128 wide, and too low


def test_the_sync_client_judges_as_well(monkeypatch):
    monkeypatch.setattr(under_test, "TritonTransport", lambda *_, **__: server())
    with Client() as client:
        assert client.card().max_size >= 128
        with pytest.raises(InvalidRequest, match="num_inference_steps: 0 given; legal: 1 … 100"):
            client.check("a fox", num_inference_steps=0)
