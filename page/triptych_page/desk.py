"""What the page's buttons do, without the page: check, begin, stop, look up. One for all sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.errors import InvalidRequest, TriptychError, invalid

from .forms import FILES, STACKS, Form
from .grid import axis, plan
from .jobs import Batch, Jobs
from .monitor import Monitor
from .seeds import check_count, draw_seed, seeds_from
from .sketch import sketch
from .store import Entry, Session, Store

NO_FORM = "The server has not told yet what it takes; try again when it is there."


class Refused(TriptychError):
    """Nothing was begun; `problems` are a line each."""

    def __init__(self, problems: list[InvalidRequest] | list[TriptychError]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Desk:
    """The one place where a session's wishes become jobs."""

    def __init__(self, store: Store, jobs: Jobs, monitor: Monitor) -> None:
        self.store, self.jobs, self.monitor = store, jobs, monitor

    def form(self, key: str | None) -> Form:
        """Find the form of this key; for an unknown one the first.

        Raises:
            Refused: no server has told its forms yet.
        """
        forms = self.monitor.forms
        if not forms:
            raise Refused([TriptychError(NO_FORM)])
        return forms.get(key or "") or next(iter(forms.values()))

    def news(self, session: Session) -> dict[str, Any]:
        """Tell a page what changes with every change, and whether pictures are under way, which move by the clock."""
        return {
            "seen": f"{session.version} {self.monitor.version}",
            "forms": self.monitor.forms_version,
            "busy": self.jobs.under_way(session),
        }

    def problems(self, key: str | None, values: Mapping[str, Any]) -> list[InvalidRequest]:
        """Find what is wrong with a form while it is being filled in; an empty prompt is no problem before it is sent."""
        found = self.form(key).check(values)[1]
        return [problem for problem in found if problem.field != "prompt" or values.get("prompt")]

    async def generate(
        self, session: Session, user: str | None, key: str | None, values: Mapping[str, Any], n: Any, *, keep_seed: bool
    ) -> tuple[Batch, int]:
        """Begin `n` pictures; return the batch and its first seed.

        Raises:
            Refused: something is wrong with the form, or a limit is reached.
        """
        form = self.form(key)
        request, problems = await self._asked(session, form, values, keep_seed=keep_seed)
        try:
            count = check_count(n, request.get("seed"))
        except InvalidRequest as problem:
            problems.append(problem)
        if problems:
            raise Refused(problems)
        requests = [{**request, "seed": seed} for seed in seeds_from(request["seed"], count)]
        batch = self._begin(session, user, form, requests)
        _remember(session, form, values, request["seed"])
        return batch, request["seed"]

    async def live(self, session: Session, user: str | None, key: str | None, values: Mapping[str, Any]) -> int | None:
        """Draw the picture that follows the form anew; return its seed, None where there is no prompt yet.

        Raises:
            Refused: as `generate`; the picture that followed it before is stopped all the same.
        """
        self.jobs.still(session)
        if not str(values.get("prompt") or "").strip():
            return None
        form = self.form(key)
        request, problems = await self._asked(session, form, values, keep_seed=True)
        if problems:
            raise Refused(problems)
        try:
            self.jobs.redraw(session, form.key, form.ensemble, request, sketch(form, request), user=user)
        except TriptychError as error:
            raise Refused([error]) from None
        _remember(session, form, values, request["seed"])
        return int(request["seed"])

    async def _asked(
        self, session: Session, form: Form, values: Mapping[str, Any], *, keep_seed: bool
    ) -> tuple[dict[str, Any], list[InvalidRequest]]:
        """Give the request of a form, with a seed and its files, and all that is wrong with it."""
        given = self._with_seed(session, values, keep_seed=keep_seed)
        files = await asyncio.to_thread(_files, session, form, values)
        request, problems = form.check({**given, **files})
        return {**request, **_uncached(drawn=given["seed"] != values.get("seed"))}, problems

    def _with_seed(self, session: Session, values: Mapping[str, Any], *, keep_seed: bool) -> dict[str, Any]:
        """Fill in a seed: a new one instead of one that was drawn before, unless it is to be kept; a typed one stays."""
        typed = values.get("seed")
        if typed and (keep_seed or typed != session.drawn):
            return dict(values)
        session.drawn = str(draw_seed())
        return {**values, "seed": session.drawn}

    async def grid(
        self,
        session: Session,
        user: str | None,
        key: str | None,
        values: Mapping[str, Any],
        axes: Sequence[tuple[str, str]],
    ) -> Batch:
        """Begin a grid. `axes` are settings and what was typed for each: x first, then y where there is one.

        Raises:
            Refused: as `generate`.
        """
        form = self.form(key)
        files = await asyncio.to_thread(_files, session, form, values)
        given = {**values, **files, "seed": values.get("seed") or str(draw_seed())}
        try:
            x, *rest = [axis(form, name, text) for name, text in axes]
            made, problems = plan(form, given, x, rest[0] if rest else None)
        except InvalidRequest as problem:
            raise Refused([problem]) from None
        if problems:
            raise Refused(problems)
        named = values.get("seed") or "seed" in (name for name, _ in axes)
        cells = [{**cell, **_uncached(drawn=not named)} for cell in made.cells]
        labels = [made.label(index) for index in range(len(cells))]
        return self._begin(session, user, form, cells, labels=labels, columns=made.columns)

    def chosen(self, session: Session, id: str | None) -> Entry:
        """Find the picture of this id.

        Raises:
            InvalidRequest: this session has none of that id; an old one made room for a new one, or it is another's.
        """
        entry = session.entry(id or "")
        if entry is None:
            raise invalid("picture", "none, or one that is gone", "a picture of this session")
        return entry

    def _begin(
        self, session: Session, user: str | None, form: Form, requests: list[dict[str, Any]], **grid: Any
    ) -> Batch:
        try:
            return self.jobs.start(session, form.key, form.ensemble, requests, user=user, **grid)
        except TriptychError as error:
            raise Refused([error]) from None


def own_file(session: Session, name: str, path: str | Path | None) -> Path:
    """Find a file that came from the page.

    Raises:
        InvalidRequest: it is not in the session's folder, wherever an event says it is.
    """
    found = Path(path or "")
    if not session.owns(found) or not found.is_file():
        raise invalid(name, "no file of this page", "a file that was added on this page")
    return found


def _files(session: Session, form: Form, values: Mapping[str, Any]) -> dict[str, bytes | list[bytes]]:
    """Read the files that a form starts from, which the page may delete before they are sent."""
    named = [name for name in FILES if name in form.parameters and values.get(name)]

    def read(name: str, path: str) -> bytes:
        return own_file(session, name, path).read_bytes()

    try:
        return {
            name: [read(name, path) for path, _ in values[name]] if name in STACKS else read(name, values[name])
            for name in named
        }
    except InvalidRequest as problem:
        raise Refused([problem]) from None


def _remember(session: Session, form: Form, values: Mapping[str, Any], seed: int) -> None:
    """Keep what the form holds for a page that is loaded anew; it has no files to put back."""
    kept = {name: value for name, value in values.items() if name not in FILES}
    session.form, session.asked = form.key, {**kept, "seed": str(seed)}


def _uncached(*, drawn: bool) -> dict[str, bool]:
    """Ask for no cache where the page drew the seed: nobody will ask for that picture again."""
    return {"use_cache": False} if drawn else {}
