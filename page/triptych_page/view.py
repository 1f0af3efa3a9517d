"""What a page has to draw anew: compared with what it has seen, so that an idle page costs next to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from . import render
from .desk import Desk
from .fields import preset_choices
from .forms import STACKS, Form
from .grid import sweepable
from .jobs import Batch
from .page import FAVOUR, FAVOURED, NO_AXIS, Page, Panel, Results
from .store import Entry, Session
from .words import command_line, python_code

TEXTS = ("prompt", "negative_prompt", "seed")
# Pictures of a gallery, each with the words under it.
Shown = Sequence[tuple[str, str]]


class View:
    """Updates of a page, by component; only of what changed since `seen`.

    Args:
        url: the server's address, for command lines and code to copy.
    """

    def __init__(self, page: Page, desk: Desk, url: str) -> None:
        self._page, self._desk, self._url = page, desk, url

    def changes(
        self, session: Session, seen: Mapping[str, Any], ids: Sequence[Shown], *, favourites: bool = False
    ) -> dict[Any, Any]:
        """Collect all that is new of the server's state and of the pictures.

        Args:
            session: whose page.
            seen: what this gave for `page.seen` the last time; empty for a new page.
            ids: the pictures in the page's three galleries: results, grid, history.
            favourites: whether the page shows only those in its history.
        """
        monitor, jobs = self._desk.monitor, self._desk.jobs
        drawing, grid = (any(not batch.ended for batch in jobs.of_kind(session, grid=grid)) for grid in (False, True))
        now: dict[str, Any] = {"session": session.version, "monitor": monitor.version, "drawing": drawing, "grid": grid}
        now |= {"live": self._settled(session), "favourites": favourites}
        busy = drawing or grid
        if now == seen and not busy:
            return {self._page.seen: gr.skip()}
        changed: dict[Any, Any] = {self._page.seen: now}
        if seen.get("monitor") != now["monitor"]:
            changed[self._page.banner] = render.banner(monitor.health)
        if (seen.get("drawing"), seen.get("grid")) != (drawing, grid):
            changed |= self._buttons(drawing, grid)
        if seen and now["live"] not in ("", seen.get("live")):  # it is chosen as soon as it is done
            changed |= self.chosen(session.entry(now["live"]))
        if busy or any(seen.get(name) != now[name] for name in ("session", "favourites")):
            changed |= self._pictures(session, ids, favourites=favourites)
        return changed

    def begun(self, stop: Any) -> dict[Any, Any]:
        """Let what was just begun be stopped, and the page look at everything."""
        return {stop: gr.update(interactive=True), self._page.seen: {}}

    def form(self, form: Form, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """Show the page's form as `form` has it, filled in with `settings`."""
        axes = sweepable(form)
        x, _, y, _ = self._page.grid_axes
        return {
            self._page.model: gr.update(choices=self._models(), value=form.key),
            self._page.fields.preset: preset_choices(form, settings),
            self._page.fields.start: gr.update(visible=form.takes_pictures),
            self._page.fields.follow: gr.update(visible=not form.parameters.keys().isdisjoint(STACKS)),
            x: gr.update(choices=axes, value=axes[0]),
            y: gr.update(choices=[NO_AXIS, *axes], value=NO_AXIS),
            **self._page.fields.shown(form, settings),
        }

    def other_forms(self, seen: int, shown: str | None) -> dict[Any, Any]:
        """Show the bounds of a server that was not there or has other models now; what was typed stays."""
        monitor, page = self._desk.monitor, self._page
        if seen == monitor.forms_version or not monitor.forms:
            return {page.forms_seen: gr.skip()}
        return {page.forms_seen: monitor.forms_version, **self.bounds(self._desk.form(shown))}

    def bounds(self, form: Form) -> dict[Any, Any]:
        """Show `form` with nothing filled in, but for what was typed already."""
        typed = {self._page.fields.by_name[name] for name in TEXTS}
        return {part: update for part, update in self.form(form, {}).items() if part not in typed}

    def chosen(self, entry: Entry | None) -> dict[Any, Any]:
        """Show the panel of the chosen picture."""
        panel: Panel = self._page.panel
        if entry is None:
            nothing = gr.DownloadButton(value=None, interactive=False)
            return {
                panel.box: gr.update(visible=False),
                panel.id: "",
                panel.details: "",
                panel.download: nothing,
                panel.favourite: FAVOUR,
                panel.command: "",
                panel.code: "",
            }
        settings = dict(render.shown_settings(entry))
        return {
            panel.box: gr.update(visible=True),
            panel.id: entry.id,
            panel.details: render.details(entry),
            panel.download: gr.DownloadButton(value=str(entry.path), interactive=True),
            panel.favourite: FAVOURED if entry.favourite else FAVOUR,
            panel.command: command_line(entry.ensemble, settings, url=self._url),
            panel.code: python_code(entry.ensemble, settings, url=self._url),
        }

    def compared(self, one: Entry | None, other: Entry | None) -> dict[Any, Any]:
        """Show two pictures beside each other."""
        compare = self._page.compare
        left, right = (str(entry.path) if entry else None for entry in (one, other))
        both = (left, right) if left and right else None
        return {
            compare.slider: gr.update(value=both, visible=both is not None),
            compare.left: gr.update(value=left, visible=left is not None),
            compare.right: gr.update(value=right, visible=right is not None),
            compare.differences: render.compared(one, other),
        }

    def _models(self) -> list[tuple[str, str]]:
        return [(form.title, form.key) for form in self._desk.monitor.forms.values()]

    def _settled(self, session: Session) -> str:
        """Name the picture that followed the form until it was done."""
        batch = self._desk.jobs.live(session)
        return batch.entries[0].id if batch and batch.entries else ""

    def _buttons(self, drawing: bool, grid: bool) -> dict[Any, Any]:
        # Only when they change: a button that is made anew loses the keyboard.
        return {
            self._page.stop: gr.update(interactive=drawing),
            self._page.grid_stop: gr.update(interactive=grid),
        }

    def _pictures(self, session: Session, ids: Sequence[Shown], *, favourites: bool) -> dict[Any, Any]:
        page, jobs = self._page, self._desk.jobs
        newest, grid = jobs.latest(session), jobs.latest(session, grid=True)
        history = list(reversed(session.entries))
        changed = {
            page.news: render.news(newest),
            page.results.progress: render.progress(newest, jobs.clock()),
            page.grid.progress: render.progress(grid, jobs.clock()) if grid else "",
        }
        alive = {entry.id: entry for entry in history}
        listed = [(entry, render.caption(entry)) for entry in history if entry.favourite or not favourites]
        for results, shown, pictures, columns in (
            (page.results, ids[0], _captioned(newest, alive), 0),
            (page.grid, ids[1], _captioned(grid, alive), grid.columns if grid else 0),
            (page.history, ids[2], listed, 0),
        ):
            changed |= _gallery(results, shown, pictures, columns)
        if page.history.ids in changed:
            choices = [(render.glance(entry), entry.id) for entry in history]
            changed |= {part: gr.update(choices=choices) for part in (page.compare.a, page.compare.b)}
        return changed


def _captioned(batch: Batch | None, alive: Mapping[str, Entry]) -> list[tuple[Entry, str]]:
    """List what is done of a batch and not gone, in the order of its seeds or cells, and the words under it."""
    done = ((picture.entry.id, picture.label) for picture in batch.pictures if picture.entry) if batch else ()
    return [(alive[id], render.caption(alive[id], label)) for id, label in done if id in alive]


def _gallery(results: Results, shown: Shown, pictures: Sequence[tuple[Entry, str]], columns: int) -> dict[Any, Any]:
    """Fill a gallery where it shows other pictures or words. By paths, so that the bytes stay as they are."""
    new = [(entry.id, caption) for entry, caption in pictures]
    if new == list(map(tuple, shown)):
        return {}
    value = [(str(entry.path), caption) for entry, caption in pictures]
    layout = {"columns": columns} if columns else {}
    return {results.ids: new, results.gallery: gr.update(value=value, visible=bool(new), **layout)}
