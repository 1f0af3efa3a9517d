"""How far each picture is, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

from triptych.async_client import AsyncJob
from triptych.types import Completed, Event, Queued
from triptych_contract.families import FAMILIES

from .shown import note, safe

STAGES = {stage: title for family in FAMILIES.values() for stage, title in family.stages.items()}


class Progress(Protocol):
    """Tells a person how far each job is."""

    def tell(self, job: AsyncJob, event: Event) -> None: ...

    def fail(self, job: AsyncJob) -> None: ...

    def __enter__(self) -> Progress: ...

    def __exit__(self, *_: object) -> None: ...


def progress(jobs: Sequence[AsyncJob], quiet: bool, *, staged: bool = False) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing when `quiet`; `staged` where there is more than one stage to name."""
    if quiet:
        return _Silence()
    return _Bars(jobs, staged) if sys.stderr.isatty() else _Lines(staged)


class _Silence:
    def tell(self, job: AsyncJob, event: Event) -> None:
        pass

    def fail(self, job: AsyncJob) -> None:
        pass

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Lines(_Silence):
    """One line when a picture begins and one when it ends: for logs."""

    def __init__(self, staged: bool) -> None:
        self._staged = staged
        self._begun: set[str] = set()

    def tell(self, job: AsyncJob, event: Event) -> None:
        if isinstance(event, Completed):
            note(f"seed {job.seed}: done in {event.image.timings['total_ms'] / 1000:.1f} s")
        elif job.id not in self._begun:
            self._begun.add(job.id)
            note(f"seed {job.seed}: {words(event, self._staged)}")

    def fail(self, job: AsyncJob) -> None:
        note(f"seed {job.seed}: failed")


class _Bars(_Silence):
    """A bar a picture, on a terminal."""

    def __init__(self, jobs: Sequence[AsyncJob], staged: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("seed {task.fields[seed]}"),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
        )
        # rich would send stdout to the console as well, which is stderr: a pipe would stay empty.
        self._progress = Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
        self._staged = staged
        self._tasks = {job.id: self._progress.add_task("sent", total=None, seed=job.seed) for job in jobs}

    def tell(self, job: AsyncJob, event: Event) -> None:
        if isinstance(event, Completed):
            task = self._progress.tasks[self._tasks[job.id]]
            total = task.total or 1
            self._progress.update(task.id, total=total, completed=total, description="done")
        elif isinstance(event, Queued):
            self._progress.update(self._tasks[job.id], description=words(event, self._staged))
        else:
            self._progress.update(
                self._tasks[job.id], total=event.total, completed=event.step, description=words(event, self._staged)
            )

    def fail(self, job: AsyncJob) -> None:
        self._progress.update(self._tasks[job.id], description="failed")

    def __enter__(self) -> Progress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def words(event: Event, staged: bool) -> str:
    """An event for people: `queued, 2 ahead`, `step 5 of 30`; `staged` names the stage, as `Stage C, step 5 of 30`."""
    if isinstance(event, Queued):
        return f"queued, {event.position} ahead"
    if isinstance(event, Completed):
        return "done"
    steps = f"step {event.step} of {event.total}"
    return f"{safe(STAGES.get(event.stage, event.stage))}, {steps}" if staged and event.stage else steps
