"""Live mode: a hand that moves leaves one job and no stale picture."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator

from playwright.sync_api import expect

from triptych import Client
from triptych.receipts import read_receipt

from .visitor import Visitor

APPLE = "a 3d render of a red apple"
CHANGES, STEPS = 30, 100
# In ten seconds: of each two changes one comes while the other is still sketched, and one when it is drawn in full.
PAUSES_MS = (40, 620)


@contextlib.contextmanager
def counted(url: str) -> Iterator[list[float]]:
    """How many jobs the server has, again and again."""
    found: list[float] = []
    over = threading.Event()

    def look() -> None:
        with Client(url) as client:
            while not over.wait(0.01):
                stats = client.stats()
                found.append(stats["running"] + stats["waiting"])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join(20)


def go_live(visitor: Visitor) -> None:
    visitor.page.get_by_role("checkbox", name="Live").check()


def settled(visitor: Visitor) -> dict:
    """The receipt of the picture that is shown, once it is drawn in full."""
    place = visitor.page.locator("#tp-live")
    expect(place).to_have_attribute("data-state", "done")
    expect(place).to_have_attribute("data-shown", "done")
    return read_receipt(io.BytesIO(visitor.page.request.get(place.locator("img").get_attribute("src")).body()))


def test_thirty_changes_in_ten_seconds_leave_one_job_and_no_stale_picture(visitor, url):
    visitor.ask(APPLE, seed=7, steps=STEPS)
    guidance = visitor.page.get_by_label("range slider for Guidance")
    with Client(url) as client, counted(url) as jobs:
        before = client.stats()
        go_live(visitor)
        for change in range(CHANGES):
            guidance.press("ArrowRight")
            visitor.page.wait_for_timeout(PAUSES_MS[change % 2])
        last = float(guidance.input_value())
        receipt = settled(visitor)
        after = client.stats()
    assert (receipt["guidance_scale"], receipt["seed"], receipt["num_inference_steps"]) == (last, 7, STEPS)
    assert max(jobs) <= 3  # the newest, and those of the two changes before until their step is over
    while jobs[-1] == 0:
        jobs.pop()
    assert set(jobs[-20:]) == {1}
    assert after["running"] + after["waiting"] == 0
    assert after["cancelled_total"] - before["cancelled_total"] >= CHANGES / 3
    # One of them in full, a few steps of the others.
    assert after["batches_total"] - before["batches_total"] < STEPS * CHANGES / 2
    visitor.tab("History")
    visitor.wait_for(1, "tp-history")
    expect(visitor.pictures("tp-history")).to_contain_text(f"{STEPS} steps")


def test_a_word_that_is_typed_is_drawn_and_what_is_done_is_chosen(visitor):
    visitor.ask("a 3d render of a red", seed=9, steps=20)
    go_live(visitor)
    prompt = visitor.page.locator("#tp-prompt textarea")
    prompt.focus()
    visitor.page.keyboard.press("End")
    visitor.page.keyboard.type(" apple")
    expect(visitor.page.locator("#tp-details")).to_contain_text(APPLE)
    assert settled(visitor)["prompt"] == APPLE
    assert visitor.setting("prompt") == APPLE
    visitor.page.get_by_text("a flat icon of a penguin").click()  # a change like any other
    expect(visitor.page.locator("#tp-details")).to_contain_text("penguin")
    visitor.page.locator("#tp-vary").click()
    expect(visitor.page.locator("#tp-details")).not_to_contain_text("seed 9")
    assert settled(visitor)["seed"] == int(visitor.setting("seed")) != 9


def test_a_live_page_without_a_seed_draws_one_and_keeps_to_it(visitor):
    visitor.page.locator("#tp-prompt textarea").fill(APPLE)
    visitor.slide("Steps", 8)
    go_live(visitor)
    seed = visitor.page.get_by_label("Seed", exact=True)
    expect(seed).not_to_have_value("")
    first = settled(visitor)
    visitor.slide("Guidance", 7)
    expect(visitor.page.locator("#tp-details")).to_contain_text("guidance 7")
    second = settled(visitor)
    assert first["seed"] == second["seed"] == int(seed.input_value())
    assert (first["guidance_scale"], second["guidance_scale"]) == (4.0, 7.0)


def test_what_is_wrong_is_said_and_nothing_is_drawn_until_it_is_right(visitor):
    visitor.ask(APPLE, seed=3, steps=8)
    go_live(visitor)
    settled(visitor)
    visitor.fill("Width", 100)
    expect(visitor.page.locator("#tp-problems")).to_contain_text("width: 100 given; legal:")
    visitor.fill("Width", 96)
    expect(visitor.page.locator("#tp-problems")).to_be_empty()
    expect(visitor.page.locator("#tp-details")).to_contain_text("96")
    assert settled(visitor)["width"] == 96


def test_a_page_that_is_not_live_draws_nothing_of_itself(visitor, url):
    visitor.ask(APPLE, seed=3, steps=STEPS)
    go_live(visitor)
    expect(visitor.page.locator("#tp-live")).to_be_visible()
    visitor.page.get_by_role("checkbox", name="Live").uncheck()
    expect(visitor.page.locator("#tp-live")).to_be_hidden()
    with Client(url) as client:
        while (stats := client.stats())["running"] + stats["waiting"]:
            pass
        with visitor.page.expect_response("**/gradio_api/run/predict"):  # the form is judged all the same
            visitor.slide("Guidance", 9)
        with visitor.page.expect_response("**/gradio_api/news"):
            pass
        assert client.stats()["batches_total"] == stats["batches_total"]
