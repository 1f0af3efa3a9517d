"""Figures of the page for the docs: `python -m tests.browser.figures`, while nothing else runs."""

from __future__ import annotations

import statistics
import sys
from contextlib import contextmanager

import psutil
from playwright.sync_api import Browser, Page, expect, sync_playwright

from triptych_demo import demo_builds
from triptych_server import Server

from .conftest import begin_page, launch
from .visitor import Visitor

IDLE_S, PAGES = 20, 20
CHANGES = 15
# When what is shown changes after a key, in milliseconds: the first look, the sketch, the picture.
WATCH = """() => {
  const place = document.getElementById("tp-live"), seen = {};
  window.since = () => { for (const key in seen) delete seen[key]; seen.begun = performance.now(); };
  window.seen = seen;
  new MutationObserver((changes) => {
    if (!changes.some((change) => [...change.addedNodes].some((node) => node.tagName === "IMG"))) return;
    const ms = performance.now() - seen.begun, words = document.getElementById("tp-live-words").textContent;
    seen.first ??= ms;
    if (words.startsWith("sketch")) seen.sketch ??= ms;
    if (words.startsWith("seed")) seen.picture ??= ms;
  }).observe(place, { childList: true });
}"""


def used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def idle(browser: Browser, address: str, process: psutil.Process, pages: int) -> float:
    """The share of a core that the page's server takes while so many are open, in percent."""
    contexts = [browser.new_context() for _ in range(pages)]
    opened = [Visitor(context.new_page(), address) for context in contexts]
    clock: Page = (browser.new_context().new_page()) if not opened else opened[0].page
    clock.wait_for_timeout(3000)
    before = used_s(process)
    clock.wait_for_timeout(IDLE_S * 1000)
    share = (used_s(process) - before) / IDLE_S * 100
    for context in contexts:
        context.close()
    return share


def live(browser: Browser, address: str) -> dict[str, float]:
    """From a key on a slider to what is seen of it, in milliseconds; medians."""
    context = browser.new_context()
    visitor = Visitor(context.new_page(), address)
    visitor.ask("a 3d render of a red apple", seed=7, steps=20)
    visitor.page.get_by_role("checkbox", name="Live").check()
    place = visitor.page.locator("#tp-live")
    expect(place).to_have_attribute("data-shown", "done")
    visitor.page.evaluate(WATCH)
    guidance = visitor.page.get_by_label("range slider for Guidance")
    found = []
    for _ in range(CHANGES):
        visitor.page.evaluate("since()")
        guidance.press("ArrowRight")
        visitor.page.wait_for_function("seen.picture")
        found.append(visitor.page.evaluate("seen"))
    context.close()
    return {
        name: statistics.median(one[name] for one in found if name in one) for name in ("first", "sketch", "picture")
    }


@contextmanager
def served():
    with Server(demo_builds(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server:
        process, address = begin_page(server.addresses.grpc)
        try:
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(20)


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    with served() as (address, process), sync_playwright() as playwright, launch(playwright) as browser:
        for pages in map(int, sys.argv[1:] or (0, PAGES)):
            tell(f"{pages} idle pages: {idle(browser, address, process, pages):.1f} % of a core")
        for name, ms in live(browser, address).items():
            tell(f"live, from a key to the {name}: {ms:.0f} ms")


if __name__ == "__main__":
    main()
