"""Following pictures, on a build with controls: a random tiny one, since the demo's is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Locator, expect

from triptych import Client
from triptych_server import Server

from ..tiny_builds import CONTROLS
from .conftest import begin_page
from .test_accessibility import serious
from .visitor import Visitor

SEED = min(CONTROLS)  # of the tiny build
SIZE = 64


@pytest.fixture(scope="module")
def served(tiny) -> Iterator[tuple[str, str]]:
    """The server's address and the page's."""
    with Server(tiny(SEED)[1], http_port=0, grpc_port=0, metrics_port=0) as server:
        process, address = begin_page(server.addresses.grpc)
        yield server.addresses.grpc, address
        process.terminate()
        process.wait(20)


@pytest.fixture
def painter(browser: Browser, served) -> Iterator[Visitor]:
    """Somebody on that page, before the controls."""
    context = browser.new_context()
    visitor = Visitor(context.new_page(), served[1])
    visitor.page.get_by_role("button", name="Follow pictures").click()
    yield visitor
    context.close()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> list[Path]:
    """Pictures to follow."""
    folder, paths = tmp_path_factory.mktemp("drawn"), []
    for number in range(2):
        image = Image.new("RGB", (SIZE, SIZE))
        ImageDraw.Draw(image).ellipse((8 + 8 * number, 8, 56, 48), outline="white", width=2)
        paths.append(folder / f"{number}.png")
        image.save(paths[-1])
    return paths


def pick(visitor: Visitor, name: str) -> None:
    visitor.page.get_by_label("Add to Controls").select_option(name)
    expect(number(visitor, f"Number for the weight of {name}")).to_have_value("1")


def number(visitor: Visitor, label: str) -> Locator:
    return visitor.page.get_by_label(label, exact=True)


def add(visitor: Visitor, paths: list[Path]) -> None:
    visitor.page.locator("#tp-control_images input[type=file]").first.set_input_files(paths)
    expect(visitor.page.locator("#tp-control_images .thumbnail-item img")).to_have_count(len(paths))


def test_controls_follow_their_pictures_with_weights_and_spans(painter, served, drawn, tmp_path):
    pick(painter, "edges")
    pick(painter, "depth")
    number(painter, "Number for the weight of edges").fill("0.7")
    number(painter, "End of edges").fill("0.5")
    add(painter, drawn)
    assert not serious(painter, "controls")
    painter.ask("a red fox", seed=7, steps=4)
    painter.generate()
    painter.wait_for(1)
    painter.choose(0)
    painter.page.screenshot(path="/tmp/prof/controls.png", full_page=True)
    assert painter.setting("control") == "edges:0.7:0-0.5, depth:1"
    asked = "edges:0.7:0-0.5, depth"
    with Client(served[0]) as client:
        same = client.generate(
            "a red fox",
            seed=7,
            num_inference_steps=4,
            control=asked,
            control_images=[path.read_bytes() for path in drawn],
        )
    assert painter.download(tmp_path).read_bytes() == same.data

    # What the chosen picture had comes back, but for the pictures.
    painter.page.get_by_role("button", name="Remove edges").click()
    painter.page.get_by_role("button", name="Use these settings").click()
    expect(number(painter, "End of edges")).to_have_value("0.5")


def test_all_follow_the_one_picture_that_there_is(painter, drawn):
    pick(painter, "depth")
    pick(painter, "edges")
    add(painter, drawn[:1])
    painter.ask("a fox", seed=1, steps=2)
    painter.generate()
    painter.wait_for(1)
    painter.choose(0)
    assert painter.setting("control") == "depth:1, edges:1"


def test_a_control_without_a_picture_and_a_picture_without_a_control_are_refused(painter, drawn):
    problems = painter.page.locator("#tp-problems")
    pick(painter, "edges")
    painter.ask("a fox", seed=1, steps=2)
    painter.generate()
    expect(problems).to_contain_text(re.compile("control: .*control_images"))
    painter.page.get_by_role("button", name="Remove edges").click()
    add(painter, drawn[:1])
    painter.generate()
    expect(problems).to_contain_text(re.compile("control_images: .*control"))
    painter.wait_for(0)
