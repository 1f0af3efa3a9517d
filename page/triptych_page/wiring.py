"""What the page's parts do: events to the desk, changes to the page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from triptych.errors import TriptychError

from . import dropped, render
from .desk import Desk, Refused, own_file
from .fields import masked, preset_sides, schedules, steps
from .fitting import fit
from .forms import EVERY, LISTS, PICTURES, Form
from .page import NO_AXIS, Page
from .private import NO_COOKIE
from .seeds import draw_seed
from .store import COOKIE, TOKEN, Entry, Session
from .templates import escape
from .view import TEXTS, Shown, View
from .weights import offered

# Gradio's queue limits how many at once; none of the page's events is an interface for programs.
QUEUED: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# What only looks need not wait in that queue.
LIGHT = {**QUEUED, "queue": False}
SIZE = "(width, height) => `${width} × ${height}`"
# In assets/page.js.
BEGIN, LOOK, LOOK_ANEW = "() => beginToLook()", "() => lookForNews()", "() => { lookNow(); }"
LIVE, MOVED, ARCHIVE = "(on) => { switchLive(on); }", "() => { redraw(); }", "(only) => { archive(only); }"
DRAW = "(picture, mask) => drawMask(picture, mask)"
DICE = "() => [String(crypto.getRandomValues(new Uint32Array(1))[0]), true]"


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Show an error of ours as a message on the page."""
    try:
        yield
    except TriptychError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from None


class Wiring:
    """The handlers; Gradio calls them with the components' values and the request, whose cookie is the session.

    Args:
        url: the server's address, for command lines and code to copy.
    """

    def __init__(self, page: Page, desk: Desk, url: str) -> None:
        self._page, self._desk, self._view = page, desk, View(page, desk, url)

    def connect(self) -> None:
        """Tie the handlers to the page's events."""
        with self._page.blocks:
            self._connect_form()
            self._connect_start()
            self._connect_jobs()
            self._connect_live()
            self._connect_results()
            self._connect_looks()

    def _connect_looks(self) -> None:
        page, ids = self._page, self._ids()
        everything = self._all_outputs()
        # Only then: an answer that is late must not overwrite what was typed since.
        page.blocks.load(self.load, None, everything, **LIGHT).success(None, js=BEGIN)
        # A look that was asked for during another is the one that sees the end.
        looks: dict[str, Any] = {**LIGHT, "trigger_mode": "always_last"}
        page.look.click(self.look, [page.seen, page.favourites, *ids], self._look_outputs(), **looks)
        forms = [page.forms_seen, *self._form_outputs()]
        page.look_for_forms.click(self.look_for_forms, [page.forms_seen, page.model], forms, **looks)

    def _connect_form(self) -> None:
        page, fields = self._page, self._page.fields
        form_parts = self._form_outputs()
        page.model.input(self.switch, [page.model, *fields.components], form_parts, **LIGHT).success(None, js=MOVED)
        names = ("sampler", "schedule", "seed", "num_inference_steps")
        sampler, schedule, seed, steps = (fields.by_name[name] for name in names)
        sampled = sampler.input(self.sampled, [page.model, sampler, schedule], [schedule, steps], **LIGHT)
        sampled.success(None, js=MOVED)
        sides = [fields.by_name["width"], fields.by_name["height"]]
        sized = fields.preset.input(self.sized, [page.model, fields.preset], sides, **LIGHT)
        sized.success(None, js=MOVED)
        for name in LISTS:
            part = fields.by_name[name]
            part.focus(self._offering(name), page.model, part, **LIGHT)
        gr.on([side.input for side in sides], None, sides, fields.preset, js=SIZE)
        # In the browser, as Generate may be pressed before an answer would be there.
        fields.dice.click(None, None, [seed, fields.keep_seed], js=DICE).then(None, js=MOVED)
        checked = [part for name, part in fields.by_name.items() if name not in PICTURES]
        gr.on(fields.changes, self.check, [page.model, *checked], page.problems, trigger_mode="always_last", **LIGHT)

    def _connect_start(self) -> None:
        fields = self._page.fields
        picture, mask, strength = (fields.by_name[name] for name in ("init_image", "mask", "strength"))
        put = [self.masked, [self._page.model, strength, mask], strength]
        fields.draw.click(None, [picture, mask], mask, js=DRAW).success(*put, **LIGHT).success(None, js=MOVED)
        gr.on([mask.upload, mask.clear], *put, **LIGHT).success(None, js=MOVED)

    def _connect_live(self) -> None:
        page, fields = self._page, self._page.fields
        page.live.input(None, page.live, None, js=LIVE)
        # In the browser, as a page that is not live sends nothing.
        gr.on(fields.moves, None, None, None, js=MOVED)
        page.examples.load_input_event.success(None, js=MOVED)
        given = [page.model, *fields.components]
        once: dict[str, Any] = {**LIGHT, "trigger_mode": "always_last"}
        page.redraw.click(self.redraw, given, [page.problems, fields.by_name["seed"]], **once).success(None, js=LOOK)

    def _connect_jobs(self) -> None:
        page, fields = self._page, self._page.fields
        seed = fields.by_name["seed"]
        given = [page.model, fields.count, fields.keep_seed, *fields.components]
        begun = [page.problems, seed, page.stop, page.seen]
        page.generate.click(self.generate, given, begun, **QUEUED).success(None, js=LOOK)
        page.stop.click(self.stop, None, page.stop, **LIGHT)
        grid = [page.model, *page.grid_axes, *fields.components]
        begun = [page.grid_problems, page.grid_stop, page.seen]
        page.grid_start.click(self.draw_grid, grid, begun, **QUEUED).success(None, js=LOOK)
        page.grid_stop.click(self.stop_grid, None, page.grid_stop, **LIGHT)

    def _connect_results(self) -> None:
        page, panel, compare = self._page, self._page.panel, self._page.compare
        panel_parts = self._panel_outputs()
        for results in (page.results, page.grid, page.history):
            results.gallery.select(self.choose, results.ids, panel_parts, **QUEUED)
        page.clear.click(self.clear, None, panel_parts, **LIGHT)
        filled = [*self._form_outputs(), page.fields.keep_seed, page.problems]
        for button, deed, how in (
            (panel.use, self.use, LIGHT),
            (panel.vary, self.vary, LIGHT),
            (panel.send, self.send, QUEUED),
        ):
            button.click(deed, panel.id, filled, **how).success(None, js=MOVED)
        panel.favourite.click(self.favour, panel.id, panel_parts, **LIGHT).success(None, js=LOOK)
        page.favourites.input(None, None, None, js=LOOK_ANEW)
        page.archive.click(None, page.favourites, None, js=ARCHIVE)
        panel.as_a.click(self.own, panel.id, compare.a, **LIGHT)
        panel.as_b.click(self.own, panel.id, compare.b, **LIGHT)
        shown = [compare.slider, compare.left, compare.right, compare.differences]
        gr.on([compare.a.change, compare.b.change], self.compare, [compare.a, compare.b], shown, **QUEUED)
        page.drop.upload(self.read, page.drop, [*filled, page.dropped], **LIGHT).success(None, js=MOVED)

    def _ids(self) -> list[Any]:
        return [results.ids for results in (self._page.results, self._page.grid, self._page.history)]

    def _form_outputs(self) -> list[Any]:
        page = self._page
        fields = page.fields
        axes = page.grid_axes[0], page.grid_axes[2]
        return [page.model, fields.preset, fields.start, fields.follow, *axes, *fields.components]

    def _look_outputs(self) -> list[Any]:
        page = self._page
        parts = [page.seen, page.banner, page.news, page.stop, page.grid_stop]
        parts += [page.results.progress, page.grid.progress, page.compare.a, page.compare.b]
        return [
            *parts,
            *self._panel_outputs(),
            *(part for shown in (page.results, page.grid, page.history) for part in (shown.gallery, shown.ids)),
        ]

    def _all_outputs(self) -> list[Any]:
        page = self._page
        return [*self._look_outputs(), page.forms_seen, *self._form_outputs()]

    def _panel_outputs(self) -> list[Any]:
        panel = self._page.panel
        return [panel.box, panel.id, panel.details, panel.download, panel.favourite, panel.command, panel.code]

    def _session(self, request: gr.Request) -> Session:
        cookies = request.request.cookies if request.request else {}
        token = cookies.get(COOKIE, "")
        if not TOKEN.fullmatch(token):
            raise gr.Error(NO_COOKIE, print_exception=False)
        return self._desk.store.session(token, request.username)

    async def load(self, request: gr.Request) -> dict[Any, Any]:
        """Fill a page that is new, or loaded anew, with what its session has, also what is under way."""
        session, monitor = self._session(request), self._desk.monitor
        shown = self._view.changes(session, {}, ((), (), ()))
        if monitor.forms:
            form = self._desk.form(session.form)
            shown |= self._view.form(form, session.asked) if session.asked else self._view.bounds(form)
            shown[self._page.forms_seen] = monitor.forms_version
        return shown | self._view.chosen(None)

    async def look(
        self, seen: dict[str, Any], favourites: bool, one: Shown, two: Shown, three: Shown, request: gr.Request
    ) -> dict[Any, Any]:
        """Show what is new."""
        return self._view.changes(self._session(request), seen, (one, two, three), favourites=favourites)

    async def look_for_forms(self, seen: int, key: str | None) -> dict[Any, Any]:
        """Show other models than the page knows."""
        return self._view.other_forms(seen, key)

    async def switch(self, key: str | None, *given: Any) -> dict[Any, Any]:
        """Switch to another model: its own parameters, and what it shares with the one before."""
        with told():
            form = self._desk.form(key)
        values = self._page.fields.values(given)
        kept = {name: values[name] for name in (*TEXTS, "output_format") if values.get(name)}
        return self._view.form(form, kept)

    async def sampled(self, key: str | None, sampler: str | None, schedule: str | None) -> Any:
        """List the schedules of another sampler, and bound its steps."""
        form = self._desk.form(key)
        return schedules(form, sampler, schedule), steps(form, sampler)

    def _offering(self, name: str) -> Any:
        kind: Any = EVERY[name].kind

        async def offer(key: str | None) -> Any:
            """Offer the names that there are by now."""
            await self._desk.monitor.look_for_adapters()
            return gr.update(**offered(kind, self._desk.form(key).listed(name) or {}))

        return offer

    async def masked(self, key: str | None, strength: float | None, mask: str | None) -> Any:
        """Set the strength that stands in with a mask, or without one."""
        return masked(self._desk.form(key), strength, mask=bool(mask))

    async def sized(self, key: str | None, preset: str | None) -> list[int]:
        """Give width and height of a chosen size, in pixels."""
        return list(preset_sides(preset, self._desk.form(key)))

    async def check(self, key: str | None, *given: Any) -> str:
        """Show what is wrong with the form while it is being filled in."""
        names = [name for name in self._page.fields.names if name not in PICTURES]
        try:
            return render.problems(self._desk.problems(key, dict(zip(names, given, strict=True))))
        except Refused:  # no server yet: nothing can be said
            return ""

    async def generate(
        self, request: gr.Request, key: str | None, n: Any, keep_seed: bool, *given: Any
    ) -> dict[Any, Any]:
        """Begin to draw."""
        session, fields = self._session(request), self._page.fields
        values = fields.values(given)
        try:
            _, seed = await self._desk.generate(session, request.username, key, values, n, keep_seed=keep_seed)
        except Refused as refused:
            return {self._page.problems: render.problems(refused.problems)}
        begun = self._view.begun(self._page.stop)
        return {self._page.problems: "", fields.by_name["seed"]: str(seed), **begun}

    async def redraw(self, request: gr.Request, key: str | None, *given: Any) -> dict[Any, Any]:
        """Draw the picture that follows the form anew."""
        page, session, values = self._page, self._session(request), self._page.fields.values(given)
        try:
            seed = await self._desk.live(session, request.username, key, values)
        except Refused as refused:
            return {page.problems: render.problems(refused.problems)}
        # Only one that was drawn: an answer that is late must not overwrite what was typed since.
        drawn = {} if seed is None or values["seed"] else {page.fields.by_name["seed"]: str(seed)}
        return {page.problems: "", **drawn}

    async def draw_grid(
        self, request: gr.Request, key: str | None, x: str, x_text: str, y: str, y_text: str, *given: Any
    ) -> dict[Any, Any]:
        """Begin a grid."""
        axes = [(x or "", x_text or "")] + ([(y, y_text or "")] if y not in (None, "", NO_AXIS) else [])
        session = self._session(request)
        try:
            await self._desk.grid(session, request.username, key, self._page.fields.values(given), axes)
        except Refused as refused:
            return {self._page.grid_problems: render.problems(refused.problems)}
        return {self._page.grid_problems: "", **self._view.begun(self._page.grid_stop)}

    async def stop(self, request: gr.Request) -> Any:
        """Stop what *Generate* draws."""
        return self._stop(self._session(request), grid=False)

    async def stop_grid(self, request: gr.Request) -> Any:
        """Stop the grid."""
        return self._stop(self._session(request), grid=True)

    def _stop(self, session: Session, *, grid: bool) -> Any:
        for batch in self._desk.jobs.of_kind(session, grid=grid):
            self._desk.jobs.stop(session, batch.id)
        return gr.update(interactive=False)

    async def favour(self, id: str, request: gr.Request) -> dict[Any, Any]:
        """Make the chosen picture a favourite, or no more."""
        session = self._session(request)
        return self._view.chosen(self._desk.store.favour(session, id))

    async def choose(self, ids: Shown, event: gr.SelectData, request: gr.Request) -> dict[Any, Any]:
        """Choose a picture of a gallery."""
        index = event.index if isinstance(event.index, int) else -1
        id = ids[index][0] if 0 <= index < len(ids) else ""
        return self._view.chosen(self._session(request).entry(id))

    async def clear(self, request: gr.Request) -> dict[Any, Any]:
        """Delete the session's pictures but the favourites."""
        self._desk.store.clear(self._session(request))
        return self._view.chosen(None)

    async def use(self, id: str, request: gr.Request) -> dict[Any, Any]:
        """Fill in the settings of the chosen picture."""
        return self._filled(self._entry(id, request), {})

    async def vary(self, id: str, request: gr.Request) -> dict[Any, Any]:
        """Fill in the settings of the chosen picture, with another seed."""
        return self._filled(self._entry(id, request), {"seed": draw_seed()})

    async def send(self, id: str, request: gr.Request) -> dict[Any, Any]:
        """Start from the chosen picture: it becomes the one to start from."""
        entry = self._entry(id, request)
        filled = self._filled(entry, {}, takes_pictures=True)
        filled[self._page.fields.by_name["init_image"]] = gr.update(value=str(entry.path), visible=True)
        filled[self._page.fields.start] = gr.update(open=True, visible=True)
        return filled

    async def own(self, id: str, request: gr.Request) -> Any:
        """Take the chosen picture for one side of a comparison."""
        entry = self._entry(id, request)
        choices = [(render.glance(other), other.id) for other in reversed(self._session(request).entries)]
        return gr.update(choices=choices, value=entry.id)

    async def compare(self, one: str | None, other: str | None, request: gr.Request) -> dict[Any, Any]:
        """Compare two pictures of the session."""
        session = self._session(request)
        return self._view.compared(session.entry(one or ""), session.entry(other or ""))

    async def read(self, path: str | None, request: gr.Request) -> dict[Any, Any]:
        """Read the settings of a dropped picture."""
        session = self._session(request)
        await self._desk.monitor.look_for_adapters()
        try:
            file = own_file(session, "file", path)
            found = await asyncio.to_thread(dropped.read, file, self._desk.monitor.forms)
        except (TriptychError, OSError) as error:
            return {self._page.dropped: render.problems([error])}
        words = render.dropped(found.written_by, found.settings, found.left_out)
        return {**self._fill(self._desk.form(found.form), found.settings), self._page.dropped: words}

    def _entry(self, id: str, request: gr.Request) -> Entry:
        session = self._session(request)
        with told():
            return self._desk.chosen(session, id)

    def _filled(self, entry: Entry, changes: dict[str, Any], *, takes_pictures: bool = False) -> dict[Any, Any]:
        with told():
            form = self._form_of(entry, takes_pictures)
            found = dropped.of_receipt(entry.settings, self._desk.monitor.forms)
        settings, _ = fit(form, {**found.settings, **changes})
        return self._fill(form, settings)

    def _form_of(self, entry: Entry, takes_pictures: bool) -> Form:
        form = self._desk.form(entry.form)
        able: Sequence[Form] = [other for other in self._desk.monitor.forms.values() if other.takes_pictures]
        return able[0] if takes_pictures and not form.takes_pictures and able else form

    def _fill(self, form: Form, settings: Any) -> dict[Any, Any]:
        page = self._page
        filled = self._view.form(form, settings)
        return {
            **filled,
            page.fields.keep_seed: "seed" in settings,
            page.problems: "",
        }
