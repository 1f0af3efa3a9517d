"""One request on its way through the loop: what it wants, where it stands, how it is answered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np

from .denoiser import Conditioning, Floats
from .latents import Blend, Start, initial
from .manifest import LatentScale
from .noise import TorchGenerator
from .settings import Settings
from .tables import SamplerTable
from .walk import Walk

Clock = Callable[[], float]


class Reply(Protocol):
    """The way back to one caller. Used from the loop's thread only; `send` or `fail` is called exactly once."""

    def send(self, report: dict[str, Any], latents: Floats | None = None) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def is_cancelled(self) -> bool:
        """Whether the caller has gone. Never asked after the answer."""
        ...


class Status(str, Enum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


@dataclass(eq=False)
class Job:
    """A request in the loop. `latents` and `noise_preds` are the newest first, each (C, h, w) float32.

    `conditionings` holds, by model, the conditioning of a guided step and of one that is not.
    """

    id: str
    settings: Settings
    walk: Walk
    conditionings: Mapping[str, tuple[Conditioning, Conditioning]]
    reply: Reply
    arrived: float  # seconds on the system's monotonic clock
    generator: TorchGenerator
    latents: deque[Floats]
    noise_preds: deque[Floats]
    blend: Blend | None
    submitted: float = field(default_factory=time.monotonic)
    status: Status = Status.QUEUED
    step: int = 0
    started: float | None = None
    served: float = 0.0  # seconds of steps that it was part of

    @classmethod
    def create(
        cls,
        id: str,
        settings: Settings,
        walk: Walk,
        conditionings: Mapping[str, Conditioning],
        reply: Reply,
        *,
        shape: tuple[int, int, int],
        arrived: float,
        start: Start | None = None,
        scale: LatentScale | None = None,
    ) -> Job:
        """A job at its first row; `shape` is (C, h, w) of its latents, `start` and `scale` belong to a picture to start from."""
        generator, table = TorchGenerator(settings.seed), walk.table
        first, blend = initial(settings, table, shape, generator, start, scale or LatentScale(1.0, None, None))
        both = {name: (rows, rows.conditional()) for name, rows in conditionings.items()}
        latents = deque([first], maxlen=table.latents.shape[1])
        noise_preds: deque[Floats] = deque(maxlen=table.noise_preds.shape[1])
        return cls(id, settings, walk, both, reply, arrived, generator, latents, noise_preds, blend)

    @property
    def table(self) -> SamplerTable:
        return self.walk.table

    @property
    def shape(self) -> tuple[int, ...]:
        return self.latents[0].shape

    @property
    def denoiser(self) -> str:
        """The model that its next step goes to."""
        return self.walk.denoisers[self.step]

    @property
    def conditioning(self) -> Conditioning:
        """Of its next step."""
        return self.conditionings[self.denoiser][0 if self.walk.guided[self.step] else 1]

    @property
    def rows(self) -> int:
        """Rows of a batch that its next step takes."""
        return self.walk.rows[self.step]

    @property
    def finished(self) -> bool:
        return self.step == len(self.table)

    @property
    def cost(self) -> int:
        """What is left to do, in rows × steps × latent pixels."""
        return self.walk.remaining[self.step] * self.pixels

    @property
    def step_cost(self) -> int:
        return self.rows * self.pixels

    @property
    def pixels(self) -> int:
        return self.shape[-2] * self.shape[-1]

    @property
    def deadline(self) -> float | None:
        limit = self.settings.deadline_ms
        return None if limit is None else self.arrived + limit / 1000

    def draw(self) -> Floats:
        """This step's noise, as many draws as the scheduler makes; zeros when it makes none."""
        noise = np.zeros(self.shape, np.float32)
        for _ in range(int(self.table.draws[self.step])):
            noise = self.generator.randn(self.shape)
        return noise

    def waited(self, now: float) -> float:
        """Seconds since its submission in which it was not part of a step."""
        return now - self.submitted - self.served

    def advance(self, latents: Floats) -> None:
        """Take the next latents; (C, h, w)."""
        self.step += 1
        if self.blend is not None:
            latents = self.blend.apply(latents, self.table, self.step)
        self.latents.appendleft(latents)
