"""Stable Cascade from the client: its own parameters, the stages of its walk, its files; and what a preview is."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from triptych import AsyncClient, Client, Completed, InProgress, InvalidRequest, Queued
from triptych import async_client as under_test
from triptych.cli.progress import words
from triptych.receipts import family_of, pictures_of, request_of
from triptych_contract.families import FAMILIES

from .fakes import FakeTransport

CASCADE = "stable_cascade"
GIVEN = {
    "prior_num_inference_steps": 20,
    "prior_guidance_scale": 4.0,
    "num_inference_steps": 10,
    "decoder_guidance_scale": 0.0,
    "height": 256,
    "width": 128,
    "negative_prompt": "blue",
    "output_format": "webp",
    "seed": 5,
}


def png(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(file, "PNG")
    return file.getvalue()


def running(step, seq, **also):
    state = {"status": "running", "seq": seq, "step": step, "num_steps": 3, "remaining_s": 1.5, "position": None}
    return {**state, "stage": "prior", "preview": None, **also}


def watched(*states):
    """A server that answers the picture once it was watched through `states` and a last one, whose event may be late."""
    transport = FakeTransport(states=[*states, running(3, 99)])
    transport.hold.clear()
    return transport


# parameters


async def test_every_parameter_is_sent_to_the_model():
    transport = FakeTransport()
    async with AsyncClient(transport=transport, model=CASCADE) as client:
        await client.generate("a fox", **GIVEN)
    sent = {name: value for name, value in transport.requests[0].items() if name in GIVEN}
    assert sent == GIVEN
    assert transport.models == [CASCADE]


@pytest.mark.parametrize("name", sorted(FAMILIES["sdxl"].parameters.keys() - FAMILIES[CASCADE].parameters.keys()))
async def test_a_parameter_of_sdxl_is_refused_by_name(name):
    transport = FakeTransport()
    async with AsyncClient(transport=transport, model=CASCADE) as client:
        with pytest.raises(InvalidRequest) as error:
            await client.generate("a fox", **{name: 1})
    assert str(error.value) == (
        f"{name}: a parameter of sdxl and not of stable_cascade given; legal: {', '.join(FAMILIES[CASCADE].parameters)}"
    )
    assert error.value.field == name
    assert not transport.requests


@pytest.mark.parametrize("model", ["sdxl", "my_own"])
@pytest.mark.parametrize("name", sorted(FAMILIES[CASCADE].parameters.keys() - FAMILIES["sdxl"].parameters.keys()))
async def test_a_parameter_of_cascade_is_refused_elsewhere(model, name):
    transport = FakeTransport()
    async with AsyncClient(transport=transport, model=model) as client:
        with pytest.raises(InvalidRequest) as error:
            client.submit_many("a fox", 2, **{name: 1})
    assert str(error.value).startswith(
        f"{name}: a parameter of stable_cascade and not of {model} given; legal: prompt,"
    )
    assert not transport.requests


async def test_an_unknown_parameter_is_nobodys():
    async with AsyncClient(transport=FakeTransport(), model=CASCADE) as client:
        with pytest.raises(InvalidRequest, match="steps: an unknown parameter given; legal: prompt, negative_prompt"):
            await client.generate("a fox", steps=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"prior_num_inference_steps": 1.5},
            "prior_num_inference_steps: 1.5 given; legal: a whole number below 2\\^31",
        ),
        ({"prior_num_inference_steps": True}, "prior_num_inference_steps: True given; legal: a number"),
        ({"prior_guidance_scale": 1e39}, "prior_guidance_scale: 1e[+]39 given; legal: a number that 32 bits can hold"),
        ({"decoder_guidance_scale": "much"}, "decoder_guidance_scale: 'much' given; legal: a number"),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_name(given, message):
    transport = FakeTransport()
    async with AsyncClient(transport=transport, model=CASCADE) as client:
        with pytest.raises(InvalidRequest, match=message):
            await client.generate("a fox", **given)
    assert not transport.requests


async def test_an_ensemble_of_ones_own_takes_what_sdxl_takes():
    transport = FakeTransport()
    async with AsyncClient(transport=transport, model="my_own") as client:
        await client.generate("a fox", sampler="euler")
    assert transport.models == ["my_own"]
    assert transport.requests[0]["sampler"] == "euler"


# events


async def test_events_tell_their_stage_and_previews_are_asked_for():
    shown = base64.b64encode(png()).decode()
    queued = {"status": "queued", "seq": 1, "position": 0, "stage": None, "step": 0, "num_steps": 3, "preview": None}
    states = [queued, running(0, 2), running(1, 3, preview=shown), running(2, 4, preview=shown, stage="decoder")]
    transport = watched(*states)
    async with AsyncClient(transport=transport, model=CASCADE) as client:
        events = [event async for event in client.stream("a fox", previews=True)]
    stages = [("prior", None), ("prior", png()), ("decoder", png())]
    assert events[0] == Queued(0)
    assert events[1:4] == [InProgress(step, 3, 1.5, *stage) for step, stage in enumerate(stages)]
    assert isinstance(events[4], Completed)
    assert [watch["preview"] for watch in transport.watches[:4]] == [True] * 4


async def test_nobody_is_asked_for_previews_that_nobody_wants():
    transport = watched(running(1, 1), running(2, 2))
    async with AsyncClient(transport=transport) as client:
        events = [event async for event in client.stream("a fox")]
    assert [event.preview_image for event in events[:2]] == [None, None]
    assert all("preview" not in watch for watch in transport.watches)


def test_a_preview_is_a_picture():
    event = InProgress(1, 3, preview=png("blue"))
    assert event.preview_image.size == (4, 3)
    assert event.preview_image.getpixel((0, 0)) == (0, 0, 255)
    assert "preview" not in repr(event)


@pytest.mark.parametrize("preview", ["no base64!", "Zg", 7, {}])
async def test_a_broken_preview_costs_an_event_and_never_the_picture(preview):
    transport = watched(running(1, 1, preview=preview), running(2, 2))
    async with AsyncClient(transport=transport) as client:
        events = [event async for event in client.submit("a fox").iter_events(previews=True)]
    assert isinstance(events[-1], Completed)


def test_the_sync_client_asks_for_previews_as_well(monkeypatch):
    shown = base64.b64encode(png()).decode()
    transport = FakeTransport()
    monkeypatch.setattr(under_test, "TritonTransport", lambda *_, **__: transport)
    with Client(model=CASCADE) as client:
        for events in (
            lambda: client.stream("a fox", previews=True),
            lambda: client.submit("a fox").iter_events(previews=True),
        ):
            transport.states = [running(1, 1, preview=shown), running(2, 2)]
            transport.hold.clear()
            assert next(iter(events())).preview_image.size == (4, 3)


@pytest.mark.parametrize(
    ("event", "staged", "told"),
    [
        (InProgress(5, 30, stage="prior"), True, "Stage C, step 5 of 30"),
        (InProgress(25, 30, stage="decoder"), True, "Stage B, step 25 of 30"),
        (InProgress(5, 30, stage="unet"), True, "base, step 5 of 30"),
        (InProgress(5, 30, stage="refiner_unet"), True, "refiner, step 5 of 30"),
        (InProgress(5, 30, stage="unet"), False, "step 5 of 30"),
        (InProgress(5, 30), True, "step 5 of 30"),
        (Queued(2), True, "queued, 2 ahead"),
    ],
)
def test_progress_names_the_stage_where_there_are_several(event, staged, told):
    assert words(event, staged) == told


# receipts


def test_a_receipt_asks_for_its_familys_inputs_only():
    receipt = {
        **GIVEN,
        "prompt": "a fox",
        "family": CASCADE,
        "model": "m",
        "build": "b",
        "guidance_scale": 3,
        "tenant": "t",
    }
    assert request_of(receipt) == {**GIVEN, "prompt": "a fox"}


def test_a_cascade_receipt_names_no_pictures():
    assert pictures_of({"family": CASCADE, "init_image": {"sha256": "ab"}}) == {}


def test_a_receipt_without_a_family_is_of_the_first():
    assert family_of({}).name == "sdxl"


@pytest.mark.parametrize("family", ["flux", None, 7, ["sdxl"]])
def test_a_family_that_is_not_known_is_refused(family):
    with pytest.raises(InvalidRequest, match=r"family: .* given; legal: sdxl, stable_cascade"):
        request_of({"family": family})
