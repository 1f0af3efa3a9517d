"""What the page's own script asks for: of its session alone, and nothing that a name could reach beyond it."""

from __future__ import annotations

import asyncio
import io
import zipfile

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from triptych_page.jobs import REST_S, Status
from triptych_page.routes import WAIT_S, routes

from ..serving.drawn import file, picture
from .test_desk import Counter, finished


def asks(counter, session=None):
    """A client of the session's routes."""
    table = routes(counter.desk)

    async def answer(request):
        return await table[request.path_params["asked"]](session or counter.session, request)

    app = Starlette(routes=[Route("/{asked}", answer, methods=["GET", "POST"])])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page")


async def test_one_picture_is_stopped_by_its_session_alone():
    async with Counter() as counter:
        counter.transport.hold.clear()
        batch, _ = await counter.generate(3, seed="7")
        another = asks(counter, counter.store.session("another"))
        assert (await another.post("/stop", params={"picture": f"{batch.id}/1"})).status_code == 204
        mine = asks(counter)
        assert (await mine.get("/stop", params={"picture": f"{batch.id}/1"})).status_code == 405
        for nonsense in (
            "",
            batch.id,
            f"{batch.id}/",
            f"{batch.id}/-1",
            f"{batch.id}/³",
            f"{batch.id}/99",
            "/0",
            "live",
        ):
            assert (await mine.post("/stop", params={"picture": nonsense})).status_code == 204
        assert not any(one.status.ended for one in batch.pictures)
        await mine.post("/stop", params={"picture": f"{batch.id}/1"})
        assert [one.status is Status.STOPPED for one in batch.pictures] == [False, True, False]


async def test_the_live_picture_is_given_as_far_as_it_is():
    async with Counter() as counter:
        mine, another = asks(counter), asks(counter, counter.store.session("another"))
        assert (await mine.get("/live")).status_code == 404
        assert (await mine.get("/news")).json()["live"] is None
        sketch, full = file(picture(), "JPEG"), file(picture())
        counter.transport.answers = [sketch, full]
        await counter.desk.live(counter.session, None, "sdxl", {"prompt": "a fox", "seed": "7"})
        batch = counter.desk.jobs.live(counter.session)
        while not batch.pictures[0].sketched:
            await asyncio.sleep(0.005)
        first, news = await mine.get("/live"), (await mine.get("/news")).json()
        assert (first.content, first.headers["content-type"]) == (sketch, "image/jpeg")
        assert (news["busy"], news["live"]["busy"], news["live"]["words"]) == (False, True, "sketch")
        asked = 1  # a page that has this look waits for another one, and need not ask all the time
        while (await mine.get("/news", params={"look": news["live"]["look"]})).json()["live"]["look"] == news["live"][
            "look"
        ]:
            asked += 1
        assert asked <= REST_S / WAIT_S + 2
        await finished(batch)
        second = await mine.get("/live")
        assert (second.content, second.headers["content-type"]) == (full, "image/png")
        assert (await mine.get("/news")).json()["live"]["look"] != news["live"]["look"]
        assert (await another.get("/live")).status_code == 404
        counter.store.clear(counter.session)
        assert (await mine.get("/live")).status_code == 404


@pytest.mark.parametrize(("asked", "seeds"), [("/zip", [7, 8]), ("/zip?favourites", [8])])
async def test_an_archive_is_of_the_session_alone(asked, seeds):
    async with Counter() as counter:
        counter.transport.answers = [lambda inputs: str(inputs["seed"]).encode()]
        await finished((await counter.generate(2, seed="7"))[0])
        entries = sorted(counter.session.entries, key=lambda entry: entry.seed)
        counter.store.favour(counter.session, entries[1].id)
        answer = await asks(counter).get(asked)
        assert answer.headers["content-disposition"].startswith('attachment; filename="images_')
        with zipfile.ZipFile(io.BytesIO(answer.content)) as made:
            assert sorted(int(made.read(name)) for name in made.namelist()) == seeds
        empty = await asks(counter, counter.store.session("another")).get(asked)
        assert zipfile.ZipFile(io.BytesIO(empty.content)).namelist() == []
