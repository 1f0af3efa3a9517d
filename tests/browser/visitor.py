"""What a visitor does on the page, in the visitor's words."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Locator, Page, expect

# A busy machine draws slowly; a test that fails waits for so long.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


class Visitor:
    """Somebody on the page."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.asked_for: list[str] = []
        page.on("request", lambda request: self.asked_for.append(request.url))
        page.set_default_timeout(PATIENCE_MS)
        self.come()

    def come(self) -> None:
        """Open the page and wait until it can be used."""
        self.page.goto(self.address)
        self.ready()

    def reload(self) -> None:
        """Load the page anew."""
        self.page.reload()
        self.ready()

    def ready(self) -> None:
        expect(self.page.get_by_label("SDXL", exact=True)).to_be_checked()
        expect(self.page.get_by_label("Steps", exact=False).first).to_be_visible()

    def fill(self, label: str, value: object) -> None:
        """Type into a field."""
        field = self.page.get_by_label(label, exact=False).first
        field.fill(str(value))
        field.blur()

    def slide(self, label: str, value: object) -> None:
        """Type into the number field of a slider."""
        field = self.page.get_by_label(f"number input for {label}", exact=True)
        field.fill(str(value))
        field.blur()

    def ask(self, prompt: str, *, n: int = 1, seed: int | None = None, steps: int | None = None) -> None:
        """Fill in the form."""
        self.page.locator("#tp-prompt textarea").fill(prompt)
        if seed is not None:
            self.fill("Seed", seed)
        if steps is not None:
            self.slide("Steps", steps)
        self.slide("Pictures", n)

    def pick(self, label: str, choice: str) -> None:
        """Choose from a list, once it shows the choice: Enter takes whatever comes first until then."""
        self.page.get_by_label(label).fill(choice)
        self.page.get_by_role("option", name=choice).last.click()  # another list may still be closing

    def drop(self, path: Path) -> None:
        """Drop a file."""
        self.tab("Drop a PNG")
        self.page.locator("#tp-drop input[type=file]").set_input_files(path)

    def start_from(self, path: Path) -> None:
        """Add a picture to start from."""
        self.page.get_by_role("button", name="Start from a picture").click()
        self.page.locator("#tp-init_image input[type=file]").set_input_files(path)
        expect(self.page.locator("#tp-init_image img")).to_be_visible()

    def generate(self) -> None:
        """Press the button."""
        self.page.locator("#tp-generate").click()

    def pictures(self, gallery: str = "tp-results") -> Locator:
        """The small pictures of a gallery."""
        return self.page.locator(f"#{gallery} button.thumbnail-item")

    def wait_for(self, n: int, gallery: str = "tp-results") -> None:
        """Until a gallery has so many pictures."""
        expect(self.pictures(gallery)).to_have_count(n)

    def choose(self, index: int, gallery: str = "tp-results") -> None:
        """Open a picture, not the one that is open; what is known of it is shown below."""
        name = self.page.locator("#tp-details caption")
        before = name.inner_text() if name.count() else ""
        self.pictures(gallery).nth(index).click()
        expect(name).not_to_have_text(before)

    def close_preview(self) -> None:
        """From one picture back to all of them."""
        close = self.page.get_by_role("button", name="Close")
        close.first.click()
        expect(close).to_have_count(0)  # a click while the pictures come back is lost

    def tab(self, name: str) -> None:
        """Go to a tab."""
        self.page.get_by_role("tab", name=name).click()

    def setting(self, name: str) -> str:
        """A setting of the chosen picture."""
        row = self.page.locator("#tp-details tr", has=self.page.get_by_role("rowheader", name=name, exact=True))
        return row.locator("td").inner_text()

    def download(self, folder: Path) -> Path:
        """Download the chosen picture under its own name."""
        with self.page.expect_download() as waiting:
            self.page.locator("#tp-download").click()
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path
