"""One request on its way through the loop: what it wants, where it stands, how it is answered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np

from .denoiser import Conditioning, Floats
from .noise import TorchGenerator
from .settings import Settings
from .tables import SamplerTable

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
    """A request in the loop. `latents` and `noise_preds` are the newest first, each (C, h, w) float32."""

    id: str
    settings: Settings
    table: SamplerTable
    conditioning: Conditioning
    reply: Reply
    arrived: float  # seconds on the system's monotonic clock
    generator: TorchGenerator
    latents: deque[Floats]
    noise_preds: deque[Floats]
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
        table: SamplerTable,
        conditioning: Conditioning,
        reply: Reply,
        *,
        shape: tuple[int, int, int],
        arrived: float,
    ) -> Job:
        """A job at its first row, its initial latents drawn; `shape` is (C, h, w) of its latents."""
        generator = TorchGenerator(settings.seed)
        noise = generator.randn(shape) * np.float32(table.init_noise_sigma)
        latents = deque([noise], maxlen=table.latents.shape[1])
        noise_preds: deque[Floats] = deque(maxlen=table.noise_preds.shape[1])
        return cls(id, settings, table, conditioning, reply, arrived, generator, latents, noise_preds)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.latents[0].shape

    @property
    def rows(self) -> int:
        return len(self.conditioning)

    @property
    def finished(self) -> bool:
        return self.step == len(self.table)

    @property
    def cost(self) -> int:
        """What is left to do, in rows × steps × latent pixels."""
        return (len(self.table) - self.step) * self.step_cost

    @property
    def step_cost(self) -> int:
        return self.rows * self.shape[-2] * self.shape[-1]

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
        self.latents.appendleft(latents)
        self.step += 1
