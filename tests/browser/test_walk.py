"""The walk of a visitor: draw, watch, stop, compare, sweep, download, drop back, reload, never meet another."""

from __future__ import annotations

import io
import re
import subprocess
import time
import zipfile
from urllib.parse import urlparse

from PIL import Image
from playwright.sync_api import expect

from triptych import Client
from triptych.receipts import read_receipt

from .conftest import TRIPTYCH

APPLE = "a 3d render of a red apple"


def test_the_page_is_usable_soon_and_asks_nobody_else(visitor):
    assert min(_reload_s(visitor) for _ in range(3)) < 3  # the quickest: a neighbour may slow one
    hosts = {urlparse(url).hostname for url in visitor.asked_for if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


def _reload_s(visitor):
    begun = time.monotonic()
    visitor.reload()
    return time.monotonic() - begun


def test_four_pictures_come_in_the_order_of_their_seeds(visitor):
    visitor.ask(APPLE, n=4, seed=7, steps=20)
    visitor.page.keyboard.press("Control+Enter")
    expect(visitor.page.locator("#tp-results-progress")).to_contain_text(re.compile(r"step \d+ of 20"))
    visitor.wait_for(4)
    for index, seed in enumerate((7, 8, 9, 10)):
        expect(visitor.pictures().nth(index)).to_contain_text(f"seed {seed}")
    visitor.choose(1)
    assert visitor.setting("seed") == "8"
    assert visitor.setting("num_inference_steps") == "20"


def test_previews_are_shown_while_it_runs(visitor):
    visitor.ask(APPLE, n=2, seed=70, steps=100)
    visitor.generate()
    expect(visitor.page.locator("#tp-results-progress img").first).to_have_attribute(
        "src", re.compile("^data:image/png;base64,")
    )
    visitor.page.locator("#tp-stop").click()


def test_stop_frees_the_servers_slots(visitor, url):
    visitor.ask(APPLE, n=8, seed=100, steps=100)
    visitor.generate()
    expect(visitor.page.locator("#tp-results-progress")).to_contain_text("step")
    visitor.page.locator("#tp-stop").click()
    expect(visitor.page.locator("#tp-results-progress")).to_contain_text("stopped")
    with Client(url) as client:
        ends = time.monotonic() + 10
        while (stats := client.stats())["running"] + stats["waiting"] and time.monotonic() < ends:
            time.sleep(0.1)
    assert stats["running"] + stats["waiting"] == 0


def test_two_pictures_are_compared_and_what_differs_is_marked(visitor):
    visitor.ask(APPLE, n=2, seed=20, steps=4)
    visitor.generate()
    visitor.wait_for(2)
    visitor.choose(0)
    visitor.page.locator("#tp-as-a").click()
    visitor.close_preview()
    visitor.choose(1)
    visitor.page.locator("#tp-as-b").click()
    visitor.tab("Compare")
    differences = visitor.page.locator("#tp-differences")
    expect(differences.locator("tr")).to_have_count(2)
    expect(differences.locator("mark")).to_have_text(["20", "21"])
    expect(visitor.page.locator("#tp-slider img").first).to_be_visible()


def test_a_sweep_is_a_grid_with_one_seed(visitor):
    visitor.ask(APPLE, seed=30, steps=4)
    visitor.tab("Grid")
    visitor.pick("X: setting", "guidance_scale")
    visitor.fill("X: values", "1-5 [3]")
    visitor.page.locator("#tp-grid-start").click()
    visitor.wait_for(3, "tp-grid")
    for index, scale in enumerate((1, 3, 5)):
        expect(visitor.pictures("tp-grid").nth(index)).to_contain_text(f"guidance_scale {scale}")
    visitor.choose(2, "tp-grid")
    assert (visitor.setting("seed"), visitor.setting("guidance_scale")) == ("30", "5")


def test_each_model_shows_its_own_parameters(visitor):
    expect(visitor.page.get_by_label("Sampler")).to_be_visible()
    visitor.page.get_by_label("Stable Cascade", exact=True).check()
    expect(visitor.page.get_by_label("number input for Stage C steps")).to_be_visible()
    expect(visitor.page.get_by_label("Sampler")).to_be_hidden()
    assert visitor.page.get_by_label("SDXL + refiner").count() == 0  # the demo has none
    visitor.slide("Stage C steps", 4)
    visitor.slide("Stage B steps", 3)
    visitor.page.locator("#tp-prompt textarea").fill(APPLE)
    visitor.generate()
    expect(visitor.pictures().first).to_contain_text("4+3 steps")


def test_the_file_is_the_services_and_replays_and_comes_back(visitor, url, tmp_path):
    visitor.ask(APPLE, seed=2**53 + 1, steps=5)
    visitor.generate()
    visitor.wait_for(1)
    visitor.choose(0)
    path = visitor.download(tmp_path)
    assert re.fullmatch(r"image_\d{8}_\d{6}(_\d+)?\.png", path.name)
    with Client(url) as client:
        same = client.generate(APPLE, seed=2**53 + 1, num_inference_steps=5, guidance_scale=4.0, height=128, width=128)
    assert path.read_bytes() == same.data
    replayed = subprocess.run([*TRIPTYCH, "replay", str(path), "--url", url], check=False)
    assert replayed.returncode == 0

    visitor.ask("something else", seed=1, steps=9)
    visitor.drop(path)
    expect(visitor.page.locator("#tp-dropped")).to_contain_text("All of its settings can be honoured.")
    expect(visitor.page.locator("#tp-prompt textarea")).to_have_value(APPLE)
    expect(visitor.page.get_by_label("Seed", exact=False).first).to_have_value(str(2**53 + 1))
    expect(visitor.page.get_by_label("number input for Steps")).to_have_value("5")


def test_a_reload_finds_what_is_under_way(visitor):
    visitor.ask(APPLE, n=4, seed=40, steps=100)
    visitor.generate()
    expect(visitor.page.locator("#tp-results-progress")).to_contain_text("step")
    visitor.reload()
    expect(visitor.page.locator("#tp-prompt textarea")).to_have_value(APPLE)
    visitor.wait_for(4)


def test_two_visitors_never_meet(visitor, another):
    for each, seed in ((visitor, 50), (another, 51)):
        each.ask(APPLE, seed=seed, steps=3)
        each.generate()
        each.wait_for(1)
        each.tab("History")
    for each, seed in ((visitor, 50), (another, 51)):
        each.reload()
        each.tab("History")
        each.wait_for(1, "tp-history")
        expect(each.pictures("tp-history")).to_contain_text(f"seed {seed}")


def test_one_picture_of_several_is_stopped_and_the_others_are_drawn(visitor):
    visitor.ask(APPLE, n=3, seed=80, steps=100)
    visitor.generate()
    visitor.page.get_by_role("button", name="Stop seed 81").click()
    expect(visitor.page.locator("#tp-results-progress li", has_text="seed 81")).to_contain_text("stopped")
    visitor.wait_for(2)
    for index, seed in enumerate((80, 82)):
        expect(visitor.pictures().nth(index)).to_contain_text(f"seed {seed}")


def test_favourites_are_kept_listed_and_downloaded_in_one_file(visitor, tmp_path):
    visitor.ask(APPLE, n=3, seed=90, steps=3)
    visitor.generate()
    visitor.wait_for(3)
    visitor.choose(1)
    visitor.page.locator("#tp-favourite").click()
    expect(visitor.page.locator("#tp-favourite")).to_have_text("★ Favourite")
    visitor.close_preview()
    expect(visitor.pictures().nth(1)).to_contain_text("★ favourite")
    visitor.tab("History")
    assert len(archived(visitor, tmp_path)) == 3
    visitor.page.get_by_label("Favourites only").check()
    visitor.wait_for(1, "tp-history")
    (name, data), *rest = archived(visitor, tmp_path).items()
    assert not rest
    assert re.fullmatch(r"image_\d{8}_\d{6}(_\d+)?\.png", name)
    assert read_receipt(io.BytesIO(data))["seed"] == 91
    visitor.page.get_by_label("Favourites only").uncheck()
    visitor.page.locator("#tp-clear").click()
    visitor.wait_for(1, "tp-history")


def archived(visitor, folder):
    """The pictures of the history's ZIP file, by name."""
    with visitor.page.expect_download() as waiting:
        visitor.page.locator("#tp-zip").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    with zipfile.ZipFile(path) as made:
        return {name: made.read(name) for name in made.namelist()}


def test_a_mask_is_drawn_by_mouse_and_by_keyboard(visitor, url, tmp_path):
    page = visitor.page
    start = tmp_path / "start.png"
    Image.new("RGB", (128, 128), "red").save(start)
    visitor.start_from(start)
    page.get_by_role("button", name="Draw the mask").click()
    canvas = page.get_by_label("The mask", exact=True)
    expect(canvas).to_be_focused()
    page.keyboard.press("Space")  # in the middle
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] - 5, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Use this mask").click()
    drawn = page.locator("#tp-mask img")
    expect(drawn).to_be_visible()
    expect(page.get_by_label("number input for Strength")).to_have_value("0.9999")
    with Image.open(io.BytesIO(page.request.get(drawn.get_attribute("src")).body())) as mask:
        assert mask.size == (128, 128)
        assert [mask.convert("L").getpixel(at) for at in ((64, 64), (96, 64), (10, 64), (64, 10))] == [255, 255, 0, 0]

    # It is taken up where it was left.
    page.get_by_role("button", name="Draw the mask").click()
    page.get_by_role("button", name="Invert").click()
    page.get_by_role("button", name="Use this mask").click()
    expect(drawn).not_to_have_attribute("src", drawn.get_attribute("src"))
    visitor.ask(APPLE, seed=5, steps=4)
    visitor.generate()
    visitor.wait_for(1)
    visitor.choose(0)
    assert visitor.setting("strength") == "0.9999"
    assert re.fullmatch("[0-9a-f]{12}", visitor.setting("mask"))
    asked = {"num_inference_steps": 4, "guidance_scale": 4.0, "height": 128, "width": 128, "strength": 0.9999}
    files = {"init_image": start.read_bytes(), "mask": page.request.get(drawn.get_attribute("src")).body()}
    with Client(url) as client:
        same = client.generate(APPLE, seed=5, **asked, **files)
    assert visitor.download(tmp_path).read_bytes() == same.data


def test_what_is_wrong_is_said_before_anything_is_sent(visitor, url):
    with Client(url) as client:
        before = client.stats()["completed_total"]
        visitor.ask(APPLE, seed=1)
        visitor.fill("Width", 100)
        expect(visitor.page.locator("#tp-problems")).to_contain_text("width: 100 given; legal:")
        visitor.generate()
        visitor.page.wait_for_timeout(500)
        assert client.stats()["completed_total"] == before


def test_a_prompt_is_never_markup(visitor):
    visitor.ask("<img src=x onerror=document.title='owned'> ${1+1} {{7}}", seed=60, steps=2)
    visitor.generate()
    visitor.wait_for(1)
    visitor.choose(0)
    assert visitor.setting("prompt") == "<img src=x onerror=document.title='owned'> ${1+1} {{7}}"
    assert visitor.page.title() == "Triptych"


def test_a_phone_shows_it_without_scrolling_sideways(phone):
    expect(phone.locator("#tp-generate")).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_an_idle_page_asks_for_nothing_but_whether_there_is_news(visitor):
    def look(times):
        for _ in range(times):
            with visitor.page.expect_response("**/gradio_api/news"):
                pass

    look(3)
    settled = len(visitor.asked_for)
    look(3)
    since = visitor.asked_for[settled:]
    assert len(since) >= 3
    assert all(url.endswith("/gradio_api/news") for url in since)
