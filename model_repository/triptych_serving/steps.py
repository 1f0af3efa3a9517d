"""Take one step of every job of a batch: here, around a model that only predicts, or where the model runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from .denoiser import Conditioning, Denoiser, Made
from .job import Job


class Pending(Protocol):
    """A step that was started."""

    def wait(self) -> Mapping[Job, Made]:
        """Wait until it is done; what it made of the jobs that were asked for, or of more."""
        ...


@runtime_checkable
class Steps(Protocol):
    """Takes steps. Where they are `ahead` of the loop, `start` returns before the step is done, and the next may be started."""

    ahead: bool

    def admit(self, job: Job) -> None:
        """Make ready for the next step of a job; may raise anything, and then that job alone fails."""
        ...

    def start(self, jobs: Sequence[Job], wanted: Collection[Job]) -> Pending:
        """Start the next step of each job. Of those that are `wanted` the result is to come back."""
        ...

    def leave(self, job: Job) -> None:
        """Keep nothing of a job's latents. It may never have been seen."""
        ...

    def release(self, conditioning: Conditioning) -> None:
        """As `Denoiser.release`."""
        ...


class SteppingDenoiser(Denoiser, Steps, Protocol):
    """A denoiser that takes steps itself."""


class _Done(NamedTuple):
    made: Mapping[Job, Made]

    def wait(self) -> Mapping[Job, Made]:
        return self.made


class HostSteps:
    """`Steps` by NumPy around a denoiser. A started step is done."""

    ahead = False

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    def admit(self, job: Job) -> None: ...

    def start(self, jobs: Sequence[Job], wanted: Collection[Job]) -> Pending:  # noqa: ARG002 - all are here
        """Call the model once for all rows of the batch."""
        sample = np.stack([scaled for job in jobs for scaled in [job.scaled()] * job.rows])
        timestep = np.array([job.table.timestep[job.step] for job in jobs for _ in range(job.rows)], np.float32)
        noise_pred = self._denoiser.predict(sample, timestep, [job.conditioning for job in jobs])
        ends = accumulate(job.rows for job in jobs)
        return _Done({job: job.after(noise_pred[end - job.rows : end]) for job, end in zip(jobs, ends, strict=True)})

    def leave(self, job: Job) -> None: ...

    def release(self, conditioning: Conditioning) -> None:
        self._denoiser.release(conditioning)


def steps_of(denoiser: Denoiser) -> Steps:
    """The steps that a denoiser takes itself, or those around it."""
    return denoiser if isinstance(denoiser, Steps) else HostSteps(denoiser)
