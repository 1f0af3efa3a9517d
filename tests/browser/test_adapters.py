"""Picking LoRAs, on a build for them: a random tiny one, since the demo's is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from triptych_server import Server

from .. import loras
from .conftest import begin_page
from .test_accessibility import serious
from .visitor import Visitor

SEED = 3  # of the tiny build


def put(folder: Path, build: Path, name: str, seed: int, words: str = "") -> None:
    """A LoRA in the server's folder."""
    metadata = {"modelspec.trigger_phrase": words} if words else None
    (folder / f"{name}.safetensors").write_bytes(loras.pack(loras.tensors(loras.layers_of(build), seed), metadata))


@pytest.fixture(scope="module")
def served(tiny, tmp_path_factory) -> Iterator[tuple[Path, Path, str]]:
    """The build, its folder of LoRAs, and the page's address."""
    build, folder = tiny(SEED)[1], tmp_path_factory.mktemp("loras")
    put(folder, build, "ink", 0, "ink wash")
    put(folder, build, "fog", 1)
    with Server(build, http_port=0, grpc_port=0, metrics_port=0, adapters=folder) as server:
        process, address = begin_page(server.addresses.grpc)
        yield build, folder, address
        process.terminate()
        process.wait(20)


@pytest.fixture
def painter(browser: Browser, served) -> Iterator[Visitor]:
    """Somebody on that page."""
    context = browser.new_context()
    yield Visitor(context.new_page(), served[2])
    context.close()


def add(visitor: Visitor) -> Locator:
    return visitor.page.get_by_label("Add to LoRAs")


def scale(visitor: Visitor, name: str) -> Locator:
    return visitor.page.get_by_label(f"Number for the weight of {name}")


def test_loras_are_picked_and_weighed_with_sliders(painter, served):
    build, folder, _ = served
    page = painter.page
    add(painter).select_option("ink")
    expect(page.get_by_role("group", name="LoRAs")).to_contain_text("Trigger words: ink wash")
    put(folder, build, "later", 2)  # after the page was opened
    page.mouse.move(0, 0)
    expect(add(painter).locator("option[value=later]")).to_have_count(0)
    page.wait_for_timeout(2000)  # who comes near is asked for again after so long
    add(painter).focus()
    expect(add(painter).locator("option[value=later]")).to_have_count(1)
    add(painter).select_option("later")
    expect(scale(painter, "later")).to_have_value("1")
    scale(painter, "ink").fill("0.5")
    expect(page.get_by_label("Weight of ink", exact=True)).to_have_value("0.5")
    page.get_by_label("Weight of later", exact=True).press("ArrowLeft")
    painter.ask("a red fox", seed=7, steps=2)
    painter.generate()
    painter.wait_for(1)
    painter.choose(0)
    assert painter.setting("lora") == "ink:0.5, later:0.95"

    # What the chosen picture had comes back, also to a page that is loaded anew.
    page.get_by_role("button", name="Remove ink").click()
    expect(scale(painter, "ink")).to_have_count(0)
    page.locator("#tp-use").click()
    expect(scale(painter, "ink")).to_have_value("0.5")
    painter.reload()
    expect(scale(painter, "ink")).to_have_value("0.5")
    expect(scale(painter, "later")).to_have_value("0.95")


def test_what_is_picked_stays_while_the_page_still_loads(browser: Browser, served):
    context = browser.new_context()
    page = context.new_page()
    # Everything that the page asks its server is answered late, and what is picked is picked between.
    page.route("**/gradio_api/**", lambda route: (page.wait_for_timeout(300), route.continue_()))
    page.goto(served[2])
    for name in ("fog", "ink"):
        page.get_by_label("Add to LoRAs").select_option(name)
        page.get_by_label(f"Number for the weight of {name}").fill("0.4")
    for _ in range(3):
        with page.expect_response("**/gradio_api/news"):
            pass
    for name in ("fog", "ink"):
        expect(page.get_by_label(f"Number for the weight of {name}")).to_have_value("0.4")
    context.close()


def test_axe_finds_nothing_serious_in_the_picker(painter):
    add(painter).select_option("ink")
    assert not serious(painter, "picked")


def test_too_strong_a_lora_is_told_in_the_servers_words(painter):
    add(painter).select_option("fog")
    scale(painter, "fog").fill("5")
    expect(painter.page.locator("#tp-problems")).to_contain_text(
        "lora: fog with scale 5.0 given; legal: a scale of -4 … 4"
    )


def test_a_server_without_a_folder_of_them_has_no_picker(visitor: Visitor):
    expect(add(visitor)).to_have_count(0)
