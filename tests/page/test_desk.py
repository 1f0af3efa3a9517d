"""What the page's buttons do, and how it shows what they did."""

from __future__ import annotations

import asyncio

import pytest

from triptych import AsyncClient, GeneratedImage
from triptych_page import render
from triptych_page.desk import Desk, Refused
from triptych_page.health import Health, State
from triptych_page.jobs import Batch, Jobs, Picture, Status
from triptych_page.monitor import Monitor
from triptych_page.sketch import sketch
from triptych_page.store import Store
from triptych_web.limits import Limits

from ..client.fakes import FakeTransport
from ..serving.drawn import file, picture
from .described import all_forms, described

NASTY = "<script>alert(1)</script> ${x} {{y}} `z` \"'"


class Counter:
    """A desk over a server that a test plays."""

    def __init__(self, **limits: int) -> None:
        self.transport = FakeTransport(reports={"stats": {}, "describe": {"models": described(cascade=True)}})
        self.client, self.store = AsyncClient(transport=self.transport), Store()
        self.monitor = Monitor(self.client)
        self.session = self.store.session("token")
        self.uploads = self.session.uploads
        self.uploads.mkdir()
        jobs = Jobs(lambda _: self.client, self.store, self.monitor, Limits(**limits))
        self.desk = Desk(self.store, jobs, self.monitor)

    async def __aenter__(self):
        await self.monitor.look()
        return self

    async def __aexit__(self, *_):
        await self.desk.jobs.close()
        await self.client.close()
        self.store.close()

    async def generate(self, n=1, keep_seed=True, key="sdxl", **values):
        return await self.desk.generate(self.session, None, key, {"prompt": "a fox", **values}, n, keep_seed=keep_seed)


async def finished(batch):
    await asyncio.wait_for(asyncio.gather(*batch.tasks), 10)


async def test_pictures_begin_with_the_seed_and_go_on():
    async with Counter() as counter:
        batch, seed = await counter.generate(3, seed=str(2**53 + 1))
        await finished(batch)
        assert seed == 2**53 + 1
        assert sorted(request["seed"] for request in counter.transport.requests) == [seed, seed + 1, seed + 2]


async def test_a_drawn_seed_is_drawn_anew_unless_it_is_kept_and_a_typed_one_stays():
    async with Counter() as counter:
        _, first = await counter.generate(seed="", keep_seed=False)
        _, second = await counter.generate(seed=str(first), keep_seed=False)
        assert first != second
        assert (await counter.generate(seed=str(second), keep_seed=True))[1] == second
        assert [(await counter.generate(seed="7", keep_seed=False))[1] for _ in range(2)] == [7, 7]


async def test_pictures_whose_seed_nobody_gave_are_not_kept_in_the_servers_cache():
    async with Counter() as counter:
        await finished((await counter.generate(seed="", keep_seed=False))[0])
        await finished((await counter.generate(seed="7", keep_seed=False))[0])
        for values, axes in (({}, [("clip_skip", "1")]), ({"seed": "7"}, [("clip_skip", "1")]), ({}, [("seed", "7")])):
            values = {"prompt": "a fox", **values}
            await finished(await counter.desk.grid(counter.session, None, "sdxl", values, axes))
        asked = [request.get("use_cache") for request in counter.transport.requests]
        assert asked == [False, None, False, None, None]


async def test_nothing_is_sent_while_anything_is_wrong():
    async with Counter() as counter:
        with pytest.raises(Refused) as refused:
            await counter.generate(0, prompt="", height=100)
        assert [problem.field for problem in refused.value.problems] == ["prompt", "height", "n"]
        assert counter.transport.requests == []
        assert counter.desk.jobs.latest(counter.session) is None


async def test_over_a_limit_nothing_is_begun():
    async with Counter(under_way=2) as counter:
        with pytest.raises(Refused, match="legal: 2 at once"):
            await counter.generate(3)
        assert counter.transport.requests == []


async def test_without_a_server_nothing_is_known():
    counter = Counter()
    with pytest.raises(Refused, match="not told yet"):
        await counter.generate()
    counter.store.close()
    await counter.client.close()


async def test_what_was_asked_comes_back_with_a_reload():
    async with Counter() as counter:
        await counter.generate(seed="7", height=96)
        assert counter.session.form == "sdxl"
        assert counter.session.asked == {"prompt": "a fox", "seed": "7", "height": 96}


async def test_only_files_of_the_session_are_read(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    async with Counter() as counter:
        ours, link = counter.uploads / "start.png", counter.uploads / "link.png"
        ours.write_bytes(start := file(picture()))
        link.symlink_to(secret)
        anothers = counter.store.session("another").folder / "picture.png"
        anothers.write_bytes(b"another's")
        out = counter.uploads / ".." / ".." / anothers.parent.name / anothers.name
        for path in (secret, link, anothers, out, counter.uploads, "/etc/hostname", "a" * 5000, "a\0b"):
            with pytest.raises(Refused, match=r"^init_image: no file of this page"):
                await counter.generate(init_image=str(path), strength=0.5)
        await finished((await counter.generate(init_image=str(ours), strength=0.5))[0])
        assert [request["init_image"] for request in counter.transport.requests] == [start]
        assert "init_image" not in counter.session.asked


async def test_a_grid_keeps_its_order_its_seed_and_its_labels():
    async with Counter() as counter:
        axes = [("num_inference_steps", "2, 3"), ("guidance_scale", "1-4 [2]")]
        batch = await counter.desk.grid(counter.session, None, "sdxl", {"prompt": "a fox", "seed": "7"}, axes)
        await finished(batch)
        assert batch.columns == 2
        assert [picture.label for picture in batch.pictures] == [
            f"num_inference_steps {steps}, guidance_scale {scale}" for scale in (1, 4) for steps in (2, 3)
        ]
        assert {request["seed"] for request in counter.transport.requests} == {7}
        assert counter.desk.jobs.latest(counter.session) is None
        assert counter.desk.jobs.latest(counter.session, grid=True) is batch


async def test_a_wrong_axis_is_refused_by_name():
    async with Counter() as counter:
        with pytest.raises(Refused, match=r"^num_inference_steps: '-1'"):
            await counter.desk.grid(counter.session, None, "sdxl", {"prompt": "a"}, [("num_inference_steps", "-1")])
        with pytest.raises(Refused, match=r"^axis: seed twice"):
            await counter.desk.grid(counter.session, None, "sdxl", {"prompt": "a"}, [("seed", "1"), ("seed", "2")])
        with pytest.raises(Refused, match=r"^axis: ''"):
            await counter.desk.grid(counter.session, None, "sdxl", {"prompt": "a"}, [("", "1, 2")])


async def test_a_form_tells_its_problems_before_it_is_sent():
    async with Counter() as counter:
        assert counter.desk.problems("sdxl", {"prompt": ""}) == []
        assert [problem.field for problem in counter.desk.problems("sdxl", {"prompt": " ", "width": 1})] == [
            "prompt",
            "width",
        ]


async def test_a_page_is_told_of_news_and_of_nothing_else():
    async with Counter() as counter:
        idle = counter.desk.news(counter.session)
        assert idle == counter.desk.news(counter.session)
        assert not idle["busy"]
        batch, _ = await counter.generate(seed="7")
        begun = counter.desk.news(counter.session)
        assert begun["busy"]
        await finished(batch)
        ended = counter.desk.news(counter.session)
        assert not ended["busy"]
        assert len({news["seen"] for news in (idle, begun, ended)}) == 3
        assert counter.desk.news(counter.store.session("another"))["busy"] is False


async def test_a_live_form_is_sketched_at_once_at_its_own_seed():
    async with Counter() as counter:
        values = {"prompt": "a fox", "seed": "", "num_inference_steps": 20, "guidance_scale": 3.0}
        seed = await counter.desk.live(counter.session, None, "sdxl", values)
        await counter.desk.live(counter.session, None, "sdxl", {**values, "seed": str(seed), "guidance_scale": 5.0})
        await finished(counter.desk.jobs.live(counter.session))
        asked = [(one["num_inference_steps"], one["guidance_scale"], one["seed"]) for one in counter.transport.requests]
        assert asked[-2:] == [(4, 5.0, seed), (20, 5.0, seed)]
        assert counter.session.asked["seed"] == str(seed)
        assert [entry.seed for entry in counter.session.entries] == [seed]


async def test_a_live_form_that_is_wrong_draws_nothing_and_stops_what_it_drew():
    async with Counter() as counter:
        await counter.desk.live(counter.session, None, "sdxl", {"prompt": "a fox", "seed": "7"})
        batch = counter.desk.jobs.live(counter.session)
        with pytest.raises(Refused, match=r"^width: 100 given"):
            await counter.desk.live(counter.session, None, "sdxl", {"prompt": "a fox", "seed": "7", "width": 100})
        assert batch.ended
        await counter.desk.live(counter.session, None, "sdxl", {"prompt": "a fox", "seed": "8"})
        batch = counter.desk.jobs.live(counter.session)
        assert await counter.desk.live(counter.session, None, "sdxl", {"prompt": "  ", "seed": "8"}) is None
        assert batch.ended


def test_a_sketch_has_four_steps_from_noise_and_from_a_picture():
    sdxl, cascade = (counter_forms := all_forms())["sdxl"], counter_forms["stable_cascade"]
    request = {"prompt": "a fox", "num_inference_steps": 30, "output_format": "png"}
    assert sketch(sdxl, request) == {**request, "num_inference_steps": 4, "output_format": "jpeg"}
    assert sketch(sdxl, {**request, "num_inference_steps": 4}) is None
    start = {**request, "init_image": file(picture()), "strength": 0.3}
    assert sketch(sdxl, start)["num_inference_steps"] == 14  # of which int(14 * 0.3) are taken
    steps = {"prior_num_inference_steps": 20, "num_inference_steps": 3}
    assert sketch(cascade, {"prompt": "a fox", **steps}) == {
        "prompt": "a fox",
        "prior_num_inference_steps": 4,
        "num_inference_steps": 3,
        "output_format": "jpeg",
    }


def test_a_live_picture_tells_how_far_it_is(kept):
    batch = batch_of(Picture(7, status=Status.RUNNING, step=2, total=4))
    assert render.live(batch)["look"] == ""
    batch.pictures[0].show(b"preview")
    first = render.live(batch)
    assert (first["words"], first["busy"], first["done"]) == ("step 2 of 4", True, False)
    batch.pictures[0].show(b"sketch")
    batch.pictures[0].sketched = True
    assert render.live(batch)["words"] == "sketch, step 2 of 4"
    assert render.live(batch)["look"] not in ("", first["look"])
    batch.pictures[0].entry, batch.pictures[0].status = entry(kept), Status.DONE
    assert render.live(batch)["words"].startswith("seed 7 · guidance 7.3")
    assert render.live(None) is None


def entry(store, **receipt):
    made = {"prompt": NASTY, "seed": 7, "guidance_scale": 7.300000190734863, "output_format": "png", **receipt}
    image = GeneratedImage(b"x", "png", 7, made, {"total_ms": 1500.0}, "id", cached=True)
    return store.keep(store.session("a"), "sdxl", "sdxl", "group", image)


@pytest.fixture
def kept():
    store = Store()
    yield store
    store.close()


def batch_of(*pictures):
    return Batch("id", "sdxl", "sdxl", list(pictures), begun_at=10.0)


def test_nothing_that_somebody_wrote_is_markup_or_a_template(kept):
    one, other = entry(kept), entry(kept, negative_prompt=NASTY)
    shown = [
        render.details(one),
        render.compared(one, other),
        render.problems([NASTY]),
        render.banner(Health(State.READY, NASTY)),
        render.dropped(NASTY, {NASTY: NASTY}, [NASTY]),
        render.progress(batch_of(Picture(7, NASTY, Status.FAILED, words=NASTY)), 12),
    ]
    for html in shown:
        for live in ("<script", "${", "{{", "`", "\"'"):
            assert live not in html
        assert "&lt;script" in html


def test_progress_tells_each_pictures_place():
    batch = batch_of(
        Picture(7, status=Status.QUEUED, position=2),
        Picture(8, status=Status.RUNNING, step=3, total=20, stage="prior", remaining_s=4.2, preview=b"png"),
        Picture(9, status=Status.DONE),
    )
    html = render.progress(batch, 12.4)
    assert "queued, 2 ahead" in html
    assert "step 3 of 20 (Stage C)" in html
    assert 'max="20" value="3"' in html
    assert 'alt="Preview of seed 8"' in html
    assert "seed 9" not in html
    assert "2 s" in html
    assert "to go" not in html  # the queued one has no estimate yet
    batch.pictures.pop(0)
    assert "about 4 s to go" in render.progress(batch, 12.4)


def test_progress_goes_when_all_is_well_and_stays_when_not():
    assert render.progress(batch_of(Picture(7, status=Status.DONE)), 12) == ""
    assert "failed: why" in render.progress(batch_of(Picture(7, status=Status.FAILED, words="why")), 12)


def test_a_screen_reader_hears_of_pictures_not_of_steps():
    batch = batch_of(Picture(7, status=Status.DONE), Picture(8, status=Status.RUNNING, step=3, total=20))
    assert render.news(batch) == "1 of 2 pictures done, 1 under way."
    batch.pictures[1].step = 4
    assert render.news(batch) == "1 of 2 pictures done, 1 under way."


def test_marks_and_settings_of_a_picture(kept):
    html = render.details(entry(kept))
    assert "seed 7 · guidance 7.3 · cached · replayable · 1.5 s on the server" in html
    assert render.caption(entry(kept, num_inference_steps=9), "steps 9") == "steps 9 · cached · replayable"
    assert "<td>7.3</td>" in html


def test_differing_settings_are_marked(kept):
    html = render.compared(entry(kept), entry(kept, sampler="euler"))
    assert html.count("<mark>") == 2
    assert '<th scope="row">sampler</th>' in html
    assert "same settings" in render.compared(entry(kept), entry(kept))
