"""A request in the loop: what it asks for, how far it is, and how it is answered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol

from triptych_contract.settings import Settings

from .denoiser import Conditioning, Floats, Made
from .noise import TorchGenerator
from .phase import Phase
from .tables import SamplerTable, guided

Clock = Callable[[], float]


class Reply(Protocol):
    """The way back to one caller. Exactly one of `send` and `fail` is called, once, and nothing after it."""

    def send(self, report: dict[str, Any], latents: Floats | None = None) -> None:
        """Answer with a report and, for a picture, its latents (C, h, w)."""
        ...

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        ...

    def is_cancelled(self) -> bool:
        """Return whether the caller has gone. Not to be asked after the answer."""
        ...


class Status(str, Enum):
    """Where a job stands; QUEUED is before its first step."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


class Job:
    """A request in the loop.

    Attributes:
        phase: the phase that it is in; `step` is the row of the phase's sampler table that comes next. A step may have been
            started and not be done.
        latents, noise_preds: of this phase, the newest first; each (C, h, w) float32. Where the model takes the steps itself,
            they are the first latents until the phase's last step is done.
        newest: what a step of this phase was last seen to have made.
        cost: the work that is left, by model, in rows of a batch × latent pixels.
        arrived, submitted, started: when it came to the server, to the loop, and when its first step began, in seconds of the
            loop's clock, the system's monotonic one.
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
        self.served = 0.0  # seconds of the steps that it took part in
        self.finished = False  # whether its last step is done
        self.num_steps = sum(len(phase.walk) for phase in phases)
        self.steps_done = 0
        # Steps of the whole loop: those made before it was submitted, and those made from then until its own first step.
        self.steps_before = self.steps_waited = 0
        self._generator = TorchGenerator(settings.seed)
        self._ahead = list(phases)
        self._enter(None)

    def _enter(self, previous: Floats | None) -> None:
        """Begin the next phase; `previous` are the last latents of the phase before."""
        self.phase = self._ahead.pop(0)
        self.step = 0
        start = self.phase.begin(self._generator, previous)
        # By model: the conditioning of each kind of step.
        kinds = dict.fromkeys(self.phase.walk.kinds)
        self.conditionings = {
            name: {kind: rows.of_step(kind) for kind in kinds} for name, rows in start.conditionings.items()
        }
        self.blend = start.blend
        self.newest: Made | None = None
        self.latents = deque([start.latents], maxlen=self.table.latents.shape[1])
        self.noise_preds: deque[Floats] = deque(maxlen=self.table.noise_preds.shape[1])
        self.cost = self._cost()

    def timings(self, now: float) -> dict[str, float]:
        """Tell what the job spent its time on, in milliseconds, and how many of the loop's steps it waited."""
        started = self.started or self.submitted
        return {
            "before_ms": round((self.submitted - self.arrived) * 1e3, 3),
            "queue_ms": round((started - self.submitted) * 1e3, 3),
            "queue_steps": self.steps_waited,
            "denoise_ms": round((now - started) * 1e3, 3),
        }

    @property
    def table(self) -> SamplerTable:
        """The sampler table of its phase."""
        return self.phase.walk.table

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its phase's latents, (C, h, w)."""
        return self.phase.shape

    @property
    def denoiser(self) -> str:
        """The model that runs its next step or, after the last step, the model that ran that."""
        return self.phase.walk.denoisers[min(self.step, len(self.table) - 1)]

    @property
    def kind(self) -> tuple[str, tuple[int, ...], int, float | None]:
        """What jobs must have in common to share a batch: model, latent shape, tokens and, for some models, the timestep."""
        timestep = float(self.table.timestep[self.step]) if self.denoiser in self.phase.one_timestep else None
        return self.denoiser, self.shape, self.phase.tokens, timestep

    @property
    def conditioning(self) -> Conditioning:
        """The conditioning of its next step."""
        return self.conditionings[self.denoiser][self.phase.walk.kinds[self.step]]

    @property
    def rows(self) -> int:
        """How many rows of a batch its next step takes: 2 if it is guided, else 1."""
        return self.phase.walk.batch_rows[self.step]

    @property
    def ready(self) -> bool:
        """Whether its phase has another step."""
        return self.step < len(self.table)

    def _cost(self) -> dict[str, int]:
        """Return the work that is left, by model. No two phases share a model."""
        cost = self.phase.cost(self.step)
        for phase in self._ahead:
            cost |= phase.cost(0)
        return cost

    @property
    def deadline(self) -> float | None:
        """When it is cancelled if it has not ended, in seconds of the loop's clock."""
        limit = self.settings.deadline_ms
        return None if limit is None else self.arrived + limit / 1000

    def scaled(self) -> Floats:
        """Return the latents as the model gets them in its next step, (C, h, w)."""
        scaled: Floats = self.latents[0] * self.table.input_scale[self.step]
        return scaled

    def after(self, noise_pred: Floats) -> Made:
        """Compute what its next step makes of the model's output for its rows, (rows, C, h, w)."""
        self.noise_preds.appendleft(guided(noise_pred, self.phase.guidance_scale, self.phase.guidance_rescale))
        latents = self.table.advance(self.step, self.latents, self.noise_preds, self.draw())
        if self.blend is not None:
            latents = self.blend.apply(latents, self.table, self.step + 1)
        return Made(self.step + 1, latents, self.noise_preds[0])

    def waited(self, now: float) -> float:
        """Return the seconds since its submission in which it took part in no step."""
        return now - self.submitted - self.served

    def go_on(self) -> None:
        """Go on to the next row: this one's step was started."""
        self.step += 1
        self.steps_done += 1
        self.cost = self._cost()

    def see(self, made: Made) -> None:
        """Take in what a step made. After the last row of a phase the next phase begins."""
        self.newest = made
        self.latents.appendleft(made.latents)
        if made.row == len(self.table):
            self.finished = not self._ahead
            if self._ahead:
                self._enter(made.latents)

    def draw(self) -> Floats | None:
        """Draw the next step's noise, (C, h, w); None if the sampler draws none.

        A diffusers scheduler may draw more than once and use the last draw only. So many are drawn here too, so that the
        random numbers after it are the same.
        """
        noise = None
        for _ in range(self.table.draws[self.step]):
            noise = self._generator.randn(self.shape)
        return noise
