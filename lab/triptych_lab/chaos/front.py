"""`triptych api` before the server, killed as everything else is, and a caller who has pictures as jobs over HTTP."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import random
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from triptych import ServerUnavailable

from .load import Callers

Json = dict[str, Any]
AGAIN_S, ANSWER_S = 0.1, 60.0
# Codes of errors that say that nothing was to be had just then.
AWAY = ("server_unavailable", "queue_full")


class Front:
    """A front with a file of jobs, and who asks it. `with` starts it, and kills what is left of it."""

    def __init__(self, callers: Callers) -> None:
        self._callers, self._port = callers, 0
        self._folder = tempfile.TemporaryDirectory(prefix="chaos-front-")

    def __enter__(self) -> Front:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._folder.cleanup()

    def _start(self) -> None:
        options = f"--url={self._callers.url}", f"--port={self._port}", f"--jobs={self._folder.name}/jobs.db"
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [str(Path(sys.executable).parent / "triptych"), "api", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        address = self._process.stdout.readline().strip()
        if not address.startswith("http"):
            raise RuntimeError("triptych api did not start; pip install 'triptych[api]'")
        self._port = int(address.rpartition(":")[2])

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Kill -9, and start it again at the same address."""
        self._end()
        self._start()

    async def go_on(self, seed: int) -> None:
        """Have one job after the other, of what the seed says, until it is over."""
        draw = random.Random(f"{seed} front")  # noqa: S311 - to be repeated
        while not self._callers.over.is_set():
            await self._have(draw.choice([*self._callers.kinds]))

    async def _have(self, kind: str) -> None:
        entry = self._callers.ledger.sent(kind)
        model, inputs = self._callers.kinds[kind]
        wanted = {name: _plain(value) for name, value in inputs.items()}
        key = {"idempotency-key": str(uuid.uuid4())}  # asked for twice, it is drawn once
        job = await self._until(HTTPStatus.ACCEPTED, "POST", "/v1/jobs", {"model": model, **wanted}, key)
        while job["status"] in ("queued", "generating"):
            await asyncio.sleep(AGAIN_S)
            job = await self._until(HTTPStatus.OK, "GET", f"/v1/jobs/{job['id']}")
        self._callers.ledger.ended(entry, _outcome(job))

    async def _until(self, status: int, *asked: Any) -> Json:
        """Ask until a front answers with this status; others may say that there is no server, and nothing else."""
        while True:
            try:
                got, answer = await asyncio.to_thread(self._ask, *asked)
            except (OSError, http.client.HTTPException):  # it was just killed
                got, answer = 0, {}
            if got == status:
                return answer
            if got and answer["error"]["code"] not in AWAY:
                return {"status": "failed", "error": answer["error"]}
            await asyncio.sleep(AGAIN_S)

    def _ask(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Json]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            sent = {"content-type": "application/json", **(headers or {})}
            connection.request(method, path, json.dumps(body) if body else None, sent)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _outcome(job: Json) -> bytes | BaseException:
    """The file, an error that says that the server was away, or a defect."""
    if job["status"] == "completed":
        return base64.b64decode(job["result"]["data"][0]["b64_json"])
    error = job.get("error") or {"code": job["status"], "message": "nothing said"}
    words = f"over HTTP: {error['code']}: {error['message']}"
    return ServerUnavailable(words) if error["code"] in AWAY else RuntimeError(words)
