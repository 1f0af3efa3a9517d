"""Pictures of the page in each of its states, for the docs: `python -m tests.browser.screenshots FOLDER [BUILD]`.

BUILD is one with the control `edges`, as docs/export.md makes it; without it that state is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect, sync_playwright

from triptych_demo import demo_builds
from triptych_page.users import add_user
from triptych_server import Server

from .conftest import begin_page, launch
from .visitor import Visitor

DESKTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DEVICES = {"desktop": DESKTOP, "phone": PHONE}
LOOKS = [(device, scheme) for device in DEVICES for scheme in ("light", "dark")]
PENGUIN = "a flat icon of a penguin"


def idle(visitor: Visitor) -> None:
    """A page that has just been opened."""


def running(visitor: Visitor) -> None:
    visitor.ask(PENGUIN, n=4, seed=3, steps=100)
    visitor.generate()
    expect(visitor.page.locator("#tp-results-progress img")).to_have_count(4)


def results(visitor: Visitor) -> None:
    visitor.page.locator("#tp-stop").click()
    visitor.ask(PENGUIN, n=4, seed=3, steps=20)
    visitor.generate()
    expect(visitor.pictures().nth(3)).to_contain_text("seed 6 · 20 steps")


def chosen(visitor: Visitor) -> None:
    visitor.choose(1)


def compare(visitor: Visitor) -> None:
    visitor.page.locator("#tp-as-a").click()
    visitor.close_preview()
    visitor.choose(3)
    visitor.page.locator("#tp-as-b").click()
    visitor.tab("Compare")
    expect(visitor.page.locator("#tp-slider img")).to_have_count(2)


def grid(visitor: Visitor) -> None:
    visitor.tab("Grid")
    visitor.pick("X: setting", "guidance_scale")
    visitor.fill("X: values", "1, 4, 8")
    visitor.pick("Y: setting", "num_inference_steps")
    visitor.fill("Y: values", "4, 20")
    visitor.page.locator("#tp-grid-start").click()
    visitor.wait_for(6, "tp-grid")


def history(visitor: Visitor) -> None:
    visitor.choose(1, "tp-grid")
    visitor.page.locator("#tp-favourite").click()
    expect(visitor.page.locator("#tp-favourite")).to_contain_text("★")
    visitor.tab("History")
    visitor.wait_for(10, "tp-history")


def dropped(visitor: Visitor) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "foreign.png"
        foreign(path)
        visitor.drop(path)
        expect(visitor.page.locator("#tp-dropped")).to_contain_text("Cannot be honoured")


def live(visitor: Visitor) -> None:
    visitor.tab("Pictures")
    visitor.ask("a 3d render of a fox", seed=3, steps=20)
    visitor.page.get_by_role("checkbox", name="Live").check()
    expect(visitor.page.locator("#tp-live")).to_have_attribute("data-shown", "done")


def mask(visitor: Visitor) -> None:
    visitor.page.get_by_role("checkbox", name="Live").uncheck()
    with TemporaryDirectory() as folder:
        visitor.close_preview()
        visitor.choose(0)
        visitor.start_from(visitor.download(Path(folder)))
    visitor.page.get_by_role("button", name="Draw the mask").click()
    box = visitor.page.get_by_label("The mask", exact=True).bounding_box()
    assert box
    left, top, side = box["x"], box["y"], box["width"]
    visitor.page.mouse.move(left + side * 0.3, top + side * 0.35)
    visitor.page.mouse.down()
    for step in range(9):
        visitor.page.mouse.move(left + side * (0.3 + 0.05 * step), top + side * (0.35 + 0.08 * (step % 2)), steps=3)
    visitor.page.mouse.up()


def start(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name="Use this mask").click()
    expect(visitor.page.locator("#tp-mask img")).to_be_visible()


def cascade(visitor: Visitor) -> None:
    visitor.page.get_by_label("Stable Cascade", exact=True).check()
    expect(visitor.page.get_by_label("Stage C steps", exact=False).first).to_be_visible()
    visitor.page.get_by_role("tab", name="Pictures").click()


STATES: tuple[Callable[[Visitor], None], ...] = (
    idle,
    running,
    results,
    chosen,
    compare,
    grid,
    history,
    dropped,
    live,
    mask,
    start,
    cascade,
)


def foreign(path: Path) -> None:
    """A picture as A1111 writes it, with settings that are not all to be had here."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(
        "parameters",
        "a 3d render of a rocket\nNegative prompt: blurry\nSteps: 30, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 5, Seed: 1234567, Size: 128x128, Hires upscale: 2, ADetailer model: face_yolov8n.pt",
    )
    Image.new("RGB", (128, 128)).save(path, pnginfo=text)


def walk(browser: Browser, address: str, folder: Path, device: str, scheme: str) -> None:
    """Every state of one look."""
    context = browser.new_context(**DEVICES[device], color_scheme=scheme)
    visitor = Visitor(context.new_page(), address)
    for state in STATES:
        state(visitor)
        shoot(visitor, folder / f"{state.__name__}-{device}-{scheme}.webp")
    context.close()


def shoot(visitor: Visitor, path: Path) -> None:
    visitor.page.evaluate("document.activeElement?.blur(); scrollTo(0, 0)")
    visitor.page.wait_for_timeout(400)  # for Gradio's own fading in
    keep(visitor.page, path)


def keep(page: Page, path: Path) -> None:
    """The whole page, or what is seen of it behind a dialog, in a format that is small."""
    whole = page.get_by_role("dialog").count() == 0
    with Image.open(BytesIO(page.screenshot(full_page=whole))) as shot:
        shot.save(path, quality=80, method=6)


def at_the_door(browser: Browser, grpc: str, folder: Path) -> None:
    """The login, and a page whose server is absent."""
    users = folder / "users"
    add_user(users, "ada", "correct horse")
    doors = (
        ("login", (grpc, "--users", str(users)), "input[type=password]"),
        ("absent", ("127.0.0.1:1",), "#tp-banner p[data-state=absent]"),
    )
    for name, options, sign in doors:
        process, address = begin_page(*options)
        for device, scheme in LOOKS:
            context = browser.new_context(**DEVICES[device], color_scheme=scheme)
            page = context.new_page()
            page.goto(address)
            page.locator(sign).wait_for()
            page.wait_for_timeout(400)
            keep(page, folder / f"{name}-{device}-{scheme}.webp")
            context.close()
        process.terminate()
    users.unlink()


def following(browser: Browser, build: Path, folder: Path) -> None:
    """A picture along lines."""
    image, file = Image.new("L", (128, 128)), folder / "lines.png"
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 8, 98, 88), outline=255, width=2)
    draw.line(((64, 88), (60, 104), (68, 116), (64, 126)), fill=255, width=2)
    image.save(file)
    with Server(build, http_port=0, grpc_port=0, metrics_port=0) as server:
        process, address = begin_page(server.addresses.grpc)
        for device, scheme in LOOKS:
            context = browser.new_context(**DEVICES[device], color_scheme=scheme)
            visitor = Visitor(context.new_page(), address)
            visitor.page.get_by_role("button", name="Follow pictures").click()
            visitor.page.get_by_label("Add to Controls").select_option("edges")
            visitor.page.locator("#tp-control_images input[type=file]").first.set_input_files(file)
            visitor.ask("a red balloon", n=1, seed=3, steps=20)
            visitor.generate()
            expect(visitor.pictures().nth(0)).to_contain_text("seed 3 · 20 steps")
            visitor.page.locator("#tp-control_images").scroll_into_view_if_needed()
            keep(visitor.page, folder / f"following-{device}-{scheme}.webp")
            context.close()
        process.terminate()
    file.unlink()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with (
        Server(demo_builds(), http_port=0, grpc_port=0, metrics_port=0) as server,
        sync_playwright() as playwright,
        launch(playwright) as browser,
    ):
        process, address = begin_page(server.addresses.grpc)
        try:
            for device, scheme in LOOKS:
                walk(browser, address, folder, device, scheme)
            at_the_door(browser, server.addresses.grpc, folder)
            for build in sys.argv[2:]:
                following(browser, Path(build), folder)
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
