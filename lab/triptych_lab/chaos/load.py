"""What is asked for, and those who ask."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from PIL import Image

from triptych import AsyncClient, TriptychError
from triptych.patience import Patience
from triptych_contract.families import DEFAULT, FAMILIES
from triptych_contract.family import Family
from triptych_demo import demo_build
from triptych_serving.manifest import Manifest

from .ledger import Ledger

Inputs = Mapping[str, Any]
PICTURE, MIXED = "init_image", 4
# What is quickest, and what takes some steps.
PROBE, USUAL = f"{DEFAULT.name} 1 steps", f"{DEFAULT.name} 4 steps"
PATIENT, IMPATIENT = Patience(60, 60), Patience(0, 0)


def picture(side: int) -> bytes:
    """A PNG of noise, of the same bytes each time."""
    file = io.BytesIO()
    rows = random.Random(side).randbytes(side * side * 3)  # noqa: S311 - no secret
    Image.frombytes("RGB", (side, side), rows).save(file, "PNG", compress_level=0)
    return file.getvalue()


def kinds() -> dict[str, tuple[str, Inputs]]:
    """Requests of all families by their names: (model, inputs)."""
    return {
        f"{model} {name}": (model, {"prompt": "a flat icon of a fox", "seed": 7, "use_cache": False, **inputs})
        for model, family in FAMILIES.items()
        for name, inputs in _of_one(family).items()
    }


def _of_one(family: Family) -> dict[str, Inputs]:
    steps = {f"{steps} steps": {"num_inference_steps": steps} for steps in (1, 4, 12, 30)}
    card = Manifest.load(demo_build(family.name)).model
    mixed = {f"mixed {k}": family.mixed(k, MIXED, card) for k in range(MIXED)}
    sizes = {"height": 128, "width": 128, "strength": 1.0, "num_inference_steps": 4}
    pictures = {f"picture of {side}": {"init_image": picture(side), **sizes} for side in (128, 1100)}
    return {**steps, **mixed, **(pictures if PICTURE in family.parameters else {})}


class Callers:
    """Clients of one server, and the ledger of all that they send."""

    def __init__(self, url: str, seed: int, plant: Sequence[str] = ()) -> None:
        self.url, self.kinds, self._seed, self._plant = url, kinds(), seed, plant
        self.ledger = Ledger({})
        self.over = asyncio.Event()
        self._clients: dict[tuple[str, Patience], AsyncClient] = {}

    async def __aenter__(self) -> Callers:
        self._stack = AsyncExitStack()
        for model in FAMILIES:
            for patience in (PATIENT, IMPATIENT):
                client = AsyncClient(self.url, model=model, patience=patience)
                self._clients[model, patience] = await self._stack.enter_async_context(client)
        self.ledger = Ledger({kind: await self.draw(kind) for kind in self.kinds})
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def draw(self, kind: str, patience: Patience = PATIENT) -> bytes:
        """The file, noted nowhere."""
        model, inputs = self.kinds[kind]
        return (await self._clients[model, patience].generate(**inputs)).data

    async def ask(self, kind: str, patience: Patience = PATIENT, timeout_s: float | None = None) -> bool:
        """Send a request and note how it ends; whether that was with an image."""
        return await self._noted(kind, patience, timeout_s, None)

    async def _noted(self, kind: str, patience: Patience, timeout_s: float | None, cancel_s: float | None) -> bool:
        entry = self.ledger.sent(kind, timeout_s)
        planted = {1: "loss", 2: "doubled"}.get(len(self.ledger.entries))  # to see that the gates catch it
        if planted == "loss" and planted in self._plant:
            return False
        model, inputs = self.kinds[kind]
        job = self._clients[model, patience].submit(**inputs, timeout=timeout_s)
        if cancel_s is not None:
            await asyncio.wait([job.task], timeout=cancel_s)
            await job.cancel()
        outcome: bytes | BaseException
        try:
            outcome = (await job.get()).data
        except TriptychError as error:
            outcome = error
        self.ledger.ended(entry, outcome)
        if planted == "doubled" and planted in self._plant:
            self.ledger.ended(entry, outcome)
        return isinstance(outcome, bytes)

    async def go_on(self, number: int) -> None:
        """Ask for one thing after the other, of what the seed and this caller's number say, until it is `over`."""
        draw = random.Random(f"{self._seed} {number}")  # noqa: S311 - to be repeated
        while not self.over.is_set():
            kind, manner = draw.choice([*self.kinds]), draw.choice(("patient", "impatient", "deadline", "cancelled"))
            if manner == "cancelled":
                await self._noted(kind, PATIENT, None, draw.uniform(0, 0.5))
            elif manner == "deadline":
                await self.ask(kind, timeout_s=draw.uniform(0.05, 5))
            else:
                await self.ask(kind, PATIENT if manner == "patient" else IMPATIENT)
            await asyncio.sleep(draw.uniform(0, 0.3))

    async def burst(self, count: int, *, cancelled: bool) -> None:
        """So many requests at once, cancelled at once if `cancelled`."""
        await asyncio.gather(*(self._noted(USUAL, PATIENT, None, 0.0 if cancelled else None) for _ in range(count)))

    async def wrong(self) -> None:
        """Requests that are to be refused."""
        bad: list[dict[str, Any]] = [
            {"num_inference_steps": 0},
            {"prompt": " "},
            {"height": -8},
            {"init_image": b"none"},
        ]
        for inputs in bad:
            entry = self.ledger.sent("wrong")
            try:
                image = await self._clients[DEFAULT.name, PATIENT].generate(**{"prompt": "a fox", "seed": 1, **inputs})
                self.ledger.ended(entry, image.data)  # which differs from the file of this kind: there is none
            except TriptychError as error:
                self.ledger.ended(entry, error)
