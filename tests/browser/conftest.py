"""A real browser, the real page, the real server with the demo model."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from .visitor import Visitor

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TRIPTYCH = [sys.executable, "-c", "from triptych.cli import main; main()"]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def launch(playwright: Playwright) -> Iterator[Browser]:
    """Debian's Chromium. Without one these tests fail: they are never left out unseen."""
    assert CHROMIUM, "no chromium on PATH; `make test` installs Debian's as root, else: apt-get install chromium"
    browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
    yield browser
    browser.close()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A browser for all of these tests."""
    with sync_playwright() as playwright, launch(playwright) as started:
        yield started


def begin_page(grpc: str, *options: str) -> tuple[subprocess.Popen[str], str]:
    """`triptych ui` on a free port; the process and its address."""
    process = subprocess.Popen(
        [*TRIPTYCH, "ui", "--url", grpc, "--port", "0", *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "the page ended before it began"
    return process, address


@pytest.fixture(scope="package")
def address(demo) -> Iterator[str]:
    """The page's address; the page serves the demo server."""
    process, found = begin_page(demo.grpc)
    yield found
    process.terminate()
    process.wait(20)


@pytest.fixture
def visitor(browser: Browser, address: str) -> Iterator[Visitor]:
    """Somebody with a browser of their own, on the page."""
    context = browser.new_context(accept_downloads=True)
    yield Visitor(context.new_page(), address)
    context.close()


@pytest.fixture
def another(browser: Browser, address: str) -> Iterator[Visitor]:
    """Somebody else."""
    context = browser.new_context(accept_downloads=True)
    yield Visitor(context.new_page(), address)
    context.close()


@pytest.fixture
def phone(browser: Browser, address: str) -> Iterator[Page]:
    """A page as wide as a phone."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()
