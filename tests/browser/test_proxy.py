"""The page where others have put it: under a sub-path of a proxy, and over TLS."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import Browser

from triptych.receipts import read_receipt

from .conftest import begin_page
from .proxy import proxied
from .visitor import Visitor


@pytest.fixture
def open_browser(browser: Browser) -> Iterator[Browser]:
    """A window that believes any certificate."""
    context = browser.new_context(accept_downloads=True, ignore_https_errors=True)
    yield context
    context.close()


def certificate(folder: Path) -> list[str]:
    """A certificate that nobody has signed, as the page's options."""
    key, made = folder / "page.key", folder / "page.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
    ]
    subprocess.run([*command, "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(made)], check=True)
    return ["--certificate", str(made), "--key", str(key)]


def draws_and_downloads(visitor: Visitor, folder: Path) -> None:
    visitor.ask("a 3d render of a red apple", seed=7, steps=3)
    visitor.generate()
    visitor.wait_for(1)
    visitor.choose(0)
    assert read_receipt(visitor.download(folder))["seed"] == 7


def test_under_a_sub_path_of_a_proxy(demo, open_browser, tmp_path):
    process, address = begin_page(demo.grpc, "--root-path", "/tools/triptych", "--trusted-proxy", "127.0.0.1")
    try:
        with proxied("/tools/triptych", address.removesuffix("/tools/triptych/")) as outside:
            visitor = Visitor(open_browser.new_page(), outside)
            draws_and_downloads(visitor, tmp_path)
            visitor.reload()
            visitor.wait_for(1)
            visitor.page.close()
            asked = [urlparse(url) for url in visitor.asked_for if url.startswith("http")]
            assert all(
                url.netloc == urlparse(outside).netloc and url.path.startswith("/tools/triptych/") for url in asked
            )
    finally:
        process.terminate()
        process.wait(20)


def test_over_tls(demo, open_browser, tmp_path):
    process, address = begin_page(demo.grpc, *certificate(tmp_path))
    try:
        assert address.startswith("https://")
        visitor = Visitor(open_browser.new_page(), address)
        draws_and_downloads(visitor, tmp_path)
        (cookie,) = [cookie for cookie in open_browser.cookies() if cookie["name"].startswith("triptych")]
        assert cookie["secure"]
        visitor.page.close()
    finally:
        process.terminate()
        process.wait(20)
