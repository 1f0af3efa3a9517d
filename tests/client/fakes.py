"""A server that a test plays itself, behind the client's `Transport`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from triptych.errors import TriptychError

RECEIPT = {"output_format": "png", "timings": {"total_ms": 5.0}}


class FakeTransport:
    """Answers requests with `answers` in turn (an error is raised; the last is repeated), verbs from `states`.

    An answer may be a function of the inputs, and so may `receipt`. `reports` answers other verbs by their names.
    After the last of `states` a held answer is given, unless it is `endless`.
    """

    def __init__(
        self,
        *answers: Any,
        states: list[dict[str, Any]] | None = None,
        receipt: Any = RECEIPT,
        reports: dict[str, Any] | None = None,
        endless: bool = False,
    ) -> None:
        self.answers, self.states = list(answers) or [b"image"], states or []
        self.receipt, self.reports = receipt, reports or {}
        self.requests: list[dict[str, Any]] = []
        self.models: list[str] = []  # that the requests went to
        self.watches: list[dict[str, Any]] = []
        self.verbs: list[str] = []
        self.cancelled: list[str] = []
        self.endless = endless
        self.hold = asyncio.Event()
        self.hold.set()
        self.closed = False

    async def infer(self, model, inputs, outputs, *, request_id="", timeout_s=None):
        if model == "denoise":
            return {"report": json.dumps(await self._verb(inputs)).encode()}
        self.requests.append({**inputs, "request_id": request_id, "timeout_s": timeout_s})
        self.models.append(model)
        await self.hold.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer, receipt = (made(inputs) if callable(made) else made for made in (answer, self.receipt))
        if isinstance(answer, Exception):
            raise answer
        assert set(outputs) == {"image", "resolved_seed", "receipt"}
        return {"image": answer, "resolved_seed": inputs["seed"], "receipt": json.dumps(receipt).encode()}

    async def _verb(self, inputs):
        self.verbs.append(inputs["action"])
        if inputs["action"] in self.reports:
            report = self.reports[inputs["action"]]
            report = report() if callable(report) else report
            if isinstance(report, TriptychError):
                raise report
            return report
        if inputs["action"] == "cancel":
            self.cancelled.append(inputs["id"])
            return {"id": inputs["id"], "cancelled": True}
        self.watches.append(inputs)
        await asyncio.sleep(0)
        if not self.states:
            await asyncio.sleep(3600)
        state = self.states.pop(0)
        if isinstance(state, TriptychError):
            raise state
        if not self.states and not self.endless:
            self.hold.set()
        return state

    async def one(self):
        return self

    async def ready(self):
        return True

    async def close(self):
        self.closed = True
