"""One request on its way through the loop: what it wants, where it stands, how it is answered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol

from .denoiser import Conditioning, Floats
from .noise import TorchGenerator
from .phase import Phase
from .settings import Settings
from .tables import SamplerTable, guided

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


class Job:
    """A request in the loop. `latents` and `noise_preds` are its phase's, the newest first, each (C, h, w) float32.

    `arrived` is in seconds on the system's monotonic clock; `cost` is what is left to do for each model, in rows × steps ×
    latent pixels.
    """

    def __init__(
        self,
        id: str,
        settings: Settings,
        phases: Sequence[Phase],
        reply: Reply,
        *,
        arrived: float,
        submitted: float | None = None,
    ) -> None:
        self.id, self.settings, self.reply, self.arrived = id, settings, reply, arrived
        self.submitted = time.monotonic() if submitted is None else submitted
        self.status = Status.QUEUED
        self.started: float | None = None
        self.served = 0.0  # seconds of steps that it was part of
        self.num_steps = sum(len(phase.walk) for phase in phases)
        self.steps_done = 0
        # Of the whole loop: steps that had ended at its submission, and that ended from then until its first.
        self.steps_before = self.steps_waited = 0
        self._generator = TorchGenerator(settings.seed)
        self._ahead = list(phases)
        self._enter(None)

    def _enter(self, previous: Floats | None) -> None:
        """Begin the next phase, with the latents that the one before ended with."""
        self.phase = self._ahead.pop(0)
        self.step = 0  # the row of its table that comes next
        start = self.phase.begin(self._generator, previous)
        # By model, the conditioning of a guided step and of one that is not.
        self.conditionings = {name: (rows, rows.conditional()) for name, rows in start.conditionings.items()}
        self._blend = start.blend
        self.latents = deque([start.latents], maxlen=self.table.latents.shape[1])
        self.noise_preds: deque[Floats] = deque(maxlen=self.table.noise_preds.shape[1])
        self.cost = self._cost()

    @property
    def table(self) -> SamplerTable:
        return self.phase.walk.table

    @property
    def shape(self) -> tuple[int, ...]:
        return self.phase.shape

    @property
    def denoiser(self) -> str:
        """The model that its next step goes to; after the last, the one that took it."""
        return self.phase.walk.denoisers[min(self.step, len(self.table) - 1)]

    @property
    def kind(self) -> tuple[str, tuple[int, ...], float | None]:
        """What it has in common with all that its next step may share a batch with."""
        timestep = float(self.table.timestep[self.step]) if self.denoiser in self.phase.one_timestep else None
        return self.denoiser, self.shape, timestep

    @property
    def conditioning(self) -> Conditioning:
        """Of its next step."""
        return self.conditionings[self.denoiser][0 if self.phase.walk.guided[self.step] else 1]

    @property
    def rows(self) -> int:
        """Rows of a batch that its next step takes."""
        return self.phase.walk.batch_rows[self.step]

    @property
    def finished(self) -> bool:
        return self.step == len(self.table) and not self._ahead

    def _cost(self) -> dict[str, int]:
        """No two phases share a model."""
        cost = self.phase.cost(self.step)
        for phase in self._ahead:
            cost |= phase.cost(0)
        return cost

    @property
    def step_cost(self) -> int:
        return self.rows * self.phase.pixels

    @property
    def deadline(self) -> float | None:
        limit = self.settings.deadline_ms
        return None if limit is None else self.arrived + limit / 1000

    def scaled(self) -> Floats:
        """The latents as the model sees them in its next step."""
        scaled: Floats = self.latents[0] * self.table.input_scale[self.step]
        return scaled

    def after(self, noise_pred: Floats) -> Floats:
        """The latents after its next step, from what the model made of its rows; (rows, C, h, w) → (C, h, w)."""
        self.noise_preds.appendleft(guided(noise_pred, self.phase.guidance_scale, self.phase.guidance_rescale))
        return self.table.advance(self.step, self.latents, self.noise_preds, self.draw())

    def waited(self, now: float) -> float:
        """Seconds since its submission in which it was not part of a step."""
        return now - self.submitted - self.served

    def advance(self, latents: Floats) -> None:
        """Take the next latents; (C, h, w). After a phase's last row the next phase begins."""
        self.step += 1
        self.steps_done += 1
        if self._blend is not None:
            latents = self._blend.apply(latents, self.table, self.step)
        self.latents.appendleft(latents)
        if self.step == len(self.table) and self._ahead:
            self._enter(latents)
        else:
            self.cost = self._cost()

    def draw(self) -> Floats | None:
        """This step's noise, the last of as many draws as the scheduler makes; None when it makes none."""
        noise = None
        for _ in range(self.table.draws[self.step]):
            noise = self._generator.randn(self.shape)
        return noise
