"""The page while its server is absent, starts, dies and comes back."""

from __future__ import annotations

import re
import time

import psutil
import pytest
from playwright.sync_api import Browser, expect

from triptych_demo import demo_build
from triptych_server import Server

from .conftest import begin_page
from .visitor import Visitor


def kill_triton() -> None:
    """The death of `tritonserver` among our own children, as a crash would be."""
    ours = psutil.Process().children(recursive=True)
    triton = [process for process in ours if process.name() == "tritonserver"]
    assert triton
    for process in triton:
        process.kill()


@pytest.mark.serial
def test_a_server_that_dies_is_told_and_found_again_without_a_reload(browser: Browser):
    with Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server:
        process, address = begin_page(server.addresses.grpc)
        context = browser.new_context()
        try:
            visitor = Visitor(context.new_page(), address)
            banner = visitor.page.locator("#tp-banner p")
            visitor.ask("a 3d render of a red apple", n=2, seed=7, steps=100)
            visitor.generate()
            expect(visitor.page.locator("#tp-results-progress")).to_contain_text("step")
            kill_triton()
            begun = time.monotonic()
            expect(banner).to_have_attribute("data-state", re.compile("absent|loading"), timeout=10_000)
            assert time.monotonic() - begun < 3
            visitor.wait_for(2)
            expect(banner).to_have_attribute("data-state", re.compile("restarted|ready"))
        finally:
            context.close()
            process.terminate()
            process.wait(20)


def test_a_page_without_a_server_waits_for_one(browser: Browser):
    process, address = begin_page("127.0.0.1:1")
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#tp-banner p")).to_have_attribute("data-state", "absent", timeout=10_000)
        expect(page.locator("#tp-banner")).to_contain_text("No server answers")
    finally:
        context.close()
        process.terminate()
        process.wait(20)
