"""What the page's own script asks for, beside Gradio's events: small, and of the caller's session alone."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from . import render
from .desk import Desk
from .private import PICTURES
from .store import Session

Route = Callable[[Session, Request], Awaitable[Response]]
# How long a page that is live waits for another look, and how often it is looked for; seconds.
WAIT_S, LOOK_S = 0.25, 0.01


def routes(desk: Desk) -> Mapping[str, Route]:
    """Give the answers, by what is asked for."""

    async def news(session: Session, request: Request) -> Response:
        """Tell whether anything is new, and of the picture that follows the form; wait for another look than `look`."""
        told, ends = render.live(desk.jobs.live(session)), time.monotonic() + WAIT_S
        seen = request.query_params.get("look")
        while seen is not None and told and told["busy"] and told["look"] in ("", seen) and time.monotonic() < ends:
            await asyncio.sleep(LOOK_S)
            told = render.live(desk.jobs.live(session))
        return JSONResponse({**desk.news(session), "live": told})

    async def live(session: Session, _: Request) -> Response:
        """Give the picture that follows the form, as far as it is."""
        batch = desk.jobs.live(session)
        picture = batch.pictures[0] if batch else None
        if picture and picture.entry and picture.entry.path.is_file():
            path = picture.entry.path
            return Response(path.read_bytes(), media_type=PICTURES[path.suffix])
        if picture and picture.preview:
            return Response(picture.preview, media_type=_kind(picture.preview))
        return PlainTextResponse("Not found.", 404)

    async def stop(session: Session, request: Request) -> Response:
        """Stop one picture, as BATCH/INDEX, or the one that follows the form."""
        if request.method != "POST":
            return PlainTextResponse("Use POST.", 405, {"allow": "POST"})
        batch, _, index = request.query_params.get("picture", "").partition("/")
        if batch == "live":
            desk.jobs.still(session)
        elif batch and index.isascii() and index.isdigit() and len(index) < 4:
            desk.jobs.stop(session, batch, int(index))
        return Response(status_code=204)

    async def archive(session: Session, request: Request) -> Response:
        """Give the session's pictures as a ZIP file; with `favourites` only those."""
        only = "favourites" in request.query_params
        paths = [entry.path for entry in session.entries if entry.favourite or not only]
        name = time.strftime("images_%Y%m%d_%H%M%S.zip")
        headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
        return StreamingResponse(zipped(paths), media_type="application/zip", headers=headers)

    return {"news": news, "live": live, "stop": stop, "zip": archive}


def _kind(data: bytes) -> str:
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"


class _Pipe(io.RawIOBase):
    """What is written, to be taken piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self._data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += bytes(data)
        return len(data)

    def take(self) -> bytes:
        data, self._data = self._data, b""
        return data


def zipped(paths: Iterable[Path]) -> Iterator[bytes]:
    """Write files into a ZIP file, one in memory at a time; pictures are as small as they get. One that is gone is left out."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as made:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                made.writestr(path.name, path.read_bytes())
            yield pipe.take()
    yield pipe.take()
