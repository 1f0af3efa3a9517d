"""What axe finds, in light and in dark; keyboard alone."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

TABS = ("Pictures", "Compare", "Grid", "History", "Drop a PNG")


def serious(visitor, where):
    return [
        (where, violation["id"], [node["html"][:120] for node in violation["nodes"]][:4])
        for violation in Axe().run(visitor.page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visitor, scheme, tmp_path):
    visitor.page.emulate_media(color_scheme=scheme)
    visitor.reload()
    visitor.ask("a 3d render of a red apple", n=2, seed=7, steps=100)
    visitor.generate()
    visitor.page.get_by_role("button", name="Stop seed 8").wait_for()
    found = serious(visitor, "under way")
    visitor.page.locator("#tp-stop").click()
    visitor.ask("a 3d render of a red apple", n=2, seed=7, steps=4)
    visitor.page.get_by_role("checkbox", name="Live").check()
    expect(visitor.page.locator("#tp-live")).to_have_attribute("data-shown", "done")
    visitor.generate()
    visitor.wait_for(2)
    visitor.choose(0)
    visitor.page.locator("#tp-as-a").click()
    visitor.page.locator("#tp-as-b").click()
    for tab in TABS:
        visitor.tab(tab)
        visitor.page.wait_for_timeout(300)  # a tab fades in, and words are pale until then
        found += serious(visitor, tab)
    start = tmp_path / "start.png"
    Image.new("RGB", (128, 128)).save(start)
    visitor.start_from(start)
    visitor.page.get_by_role("button", name="More settings").click()
    found += serious(visitor, "all settings")
    visitor.page.get_by_role("button", name="Draw the mask").click()
    expect(visitor.page.get_by_role("dialog")).to_be_visible()
    found += serious(visitor, "the mask")
    assert not found, found


def test_the_button_changes_light_and_dark_and_a_reload_keeps_it(visitor):
    body = visitor.page.locator("body")
    before = "dark" in (body.get_attribute("class") or "")
    visitor.page.locator("#tp-theme").click()
    visitor.reload()
    assert ("dark" in (body.get_attribute("class") or "")) != before


def test_the_keyboard_alone_draws(visitor):
    prompt = visitor.page.locator("#tp-prompt textarea")
    prompt.focus()
    visitor.page.keyboard.type("a 3d render of a red apple")
    visitor.page.keyboard.press("Control+Enter")
    visitor.wait_for(1)
    expect(visitor.page.locator("#tp-news")).to_contain_text("1 of 1 pictures done")
    assert visitor.page.locator("#tp-news").get_attribute("aria-live") == "polite"
