"""The loop's `Denoiser` on TensorRT: whole steps, a captured graph for each batch size, all but noise kept on the device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import step
from ..adapters.mix import INPUTS as SLABS
from ..denoiser import Conditioning, Floats, Made, calls, only, padded
from ..engines import Profile
from ..job import Job
from ..manifest import TIMESTEPS
from ..steps import Pending
from .device import Device, Mark, Memory, Shape, TensorRTEngine
from .homes import Home, Homes, slot_bytes
from .lost import ends_the_process_if_lost
from .memory import ADAPTER_BYTES, CONDITIONING_BYTES
from .resident import Resident
from .runner import Runner

REQUEST_ROWS = 2  # of a guided request, the most that one has


class TensorRTDenoiser:
    """`Denoiser` over a TensorRT engine whose graph takes the sampler's step as well (`triptych_serving.step`), and so `Steps`.

    A step's work is enqueued and not waited for; what the host gives it comes from page-locked memory. At most one more step may
    be started before one is done.

    The bytes of a row may depend on how many rows it is run with, since TensorRT has different kernels for different shapes.
    With `fixed_rows` every call has that many rows, padded if there are fewer. The rows of one request are never split over
    two calls.

    Args:
        inputs: the stage's inputs as the manifest has them.
        sizes: the named dimensions at the model's own size. Graphs are captured at that size, before any request.
        most_rows: the most rows that the loop puts into a batch.
        homes: those of the device, where other denoisers go on with the same latents.

    Raises:
        ValueError: no profile of the engine holds the two rows of a guided request.
        DeviceError: the device refuses something, or there is too little memory.
    """

    ahead = True

    def __init__(
        self,
        device: Device,
        engine: TensorRTEngine,
        profiles: Sequence[Profile],
        inputs: Mapping[str, Mapping[str, Any]],
        sizes: Mapping[str, int],
        *,
        most_rows: int,
        fixed_rows: int | None = None,
        homes: Homes | None = None,
    ) -> None:
        self._device, self._fixed = device, fixed_rows
        own = step.inputs(inputs)
        self._own = {name: tuple(sizes.get(dim, dim) for dim in spec["shape"][1:]) for name, spec in own.items()}
        (self._timestep,) = (name for name in inputs if name in TIMESTEPS)
        self._one_timestep = not inputs[self._timestep]["shape"]
        self._conditions = [name for name in inputs if name not in ("sample", self._timestep)]
        self._most_rows = fixed_rows or most_rows
        self._rows = [n for n in self._legal_rows(most_rows) if _any_holds(profiles, self._shapes(self._own, n))]
        if not self._rows or max(self._rows) < REQUEST_ROWS:
            names = ", ".join(profile.name for profile in profiles)
            raise ValueError(
                f"rows: {self._most_rows} given; legal: {REQUEST_ROWS} or more, in one of profiles {names}"
            )
        captured = [self._shapes(self._own, n) for n in self._rows]
        # With fixed rows bytes must not change: kernels that are compiled in the background would change them midway.
        kernels = "none" if fixed_rows else "lazy"
        self._runner = Runner(device, engine, profiles, captured, kernels=kernels, carried=step.CARRIED)
        self._types = {name: engine.tensors[name].dtype for name in self._conditions}
        limit = ADAPTER_BYTES if inputs.keys() & {*SLABS} else CONDITIONING_BYTES
        self._resident = Resident(device, self._types, self._runner.staging, limit)
        self._gathered: tuple[Conditioning, ...] = ()
        self._gathered_rows = 0
        self._homes = Homes(device) if homes is None else homes
        self._slots: list[Home] = []
        self._places: list[Mapping[str, Memory]] = []
        self._clear()

    def predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        tails = self._tails(conditioning[0], sample.shape[1:])
        noise_pred = np.empty_like(sample)
        with ends_the_process_if_lost():
            for rows, members in calls(conditioning, self._most(tails)):
                noise_pred[rows] = self._call(sample[rows], timestep[rows], members, tails)
        return noise_pred

    def release(self, conditioning: Conditioning) -> None:
        with ends_the_process_if_lost():
            self._resident.release(conditioning)
        if conditioning in self._gathered:
            self._gathered = ()

    # Steps.

    def admit(self, job: Job) -> None:
        with ends_the_process_if_lost():
            self._homes.admit(job, self._runner.staging)
            self._resident[job.conditioning]

    def start(self, jobs: Sequence[Job], wanted: Collection[Job]) -> Pending:
        with ends_the_process_if_lost():
            tails, rest = self._tails(jobs[0].conditioning, jobs[0].shape), iter(jobs)
            fetched: dict[Job, Made] = {}
            for _, members in calls([job.conditioning for job in jobs], self._most(tails)):
                ours = list(itertools.islice(rest, len(members)))
                self._step(ours, members, tails)
                fetched |= {job: self._download(job, slot) for slot, job in enumerate(ours) if job in wanted}
            started = _Started(self._device.mark(), fetched)
            self._runner.staging.turn()
            return started

    def leave(self, job: Job) -> None:
        with ends_the_process_if_lost():
            self._homes.leave(job)

    def _step(self, jobs: Sequence[Job], members: tuple[Conditioning, ...], tails: Mapping[str, Shape]) -> None:
        """Enqueue one call that takes the next step of these jobs."""
        rows = self._padded(sum(job.rows for job in jobs), tails)
        self._arrange([self._homes[job] for job in jobs], jobs[0].shape)
        self._gather(members, rows)
        numbers = np.zeros((rows, step.NUMBERS), np.float32)
        for slot, job in enumerate(jobs):
            noise = job.draw()
            numbers[slot] = step.numbers(job)
            if noise is not None:
                self._runner.put("noise", noise, slot)
            if job.blend is not None:
                self._runner.put("mask", job.blend.mask, slot)
                self._runner.put("kept", job.blend.kept(job.table, job.step + 1), slot)
        slot_of_row, rows_of_slot = step.places([job.rows for job in jobs], rows)
        timestep = np.array([job.table.timestep[job.step] for job in jobs for _ in range(job.rows)], np.float32)
        self._run(rows, timestep, numbers, slot_of_row, rows_of_slot, tails)

    def _run(
        self,
        rows: int,
        timestep: Floats,
        numbers: Floats,
        slot_of_row: NDArray[np.int32],
        rows_of_slot: NDArray[np.int32],
        tails: Mapping[str, Shape],
    ) -> None:
        self._runner.put(self._timestep, only(timestep) if self._one_timestep else padded(timestep, rows))
        self._runner.put("numbers", numbers)
        self._runner.put("slot_of_row", slot_of_row)
        self._runner.put("rows_of_slot", rows_of_slot)
        self._runner.run(self._shapes(tails, rows))

    def _arrange(self, homes: Sequence[Home], shape: Shape) -> None:
        """Have these requests' latents in the slots, in this order; those of others go home."""
        if self._slots == homes:
            return
        for home, place in zip(self._slots, self._places, strict=True):
            if home.place is place:
                home.move(self._device, home.own)
        self._slots, sizes = [], slot_bytes(shape)
        self._places = [
            {name: self._runner.memory[name].part(slot * size, size) for name, size in sizes.items()}
            for slot in range(len(homes))
        ]
        for home, place in zip(homes, self._places, strict=True):
            home.move(self._device, place)
        self._slots = list(homes)

    def _download(self, job: Job, slot: int) -> Made:
        """Start to fetch what the step makes of the job in this slot."""
        at = {name: slot * size for name, size in slot_bytes(job.shape).items()}
        latents, noise_pred = (self._runner.download(name, job.shape, at[name]) for name in at)
        return Made(job.step + 1, latents, noise_pred)

    def _tails(self, conditioning: Conditioning, latents: Shape) -> dict[str, Shape]:
        """The inputs' shapes without the rows, for latents of a shape."""
        tails = {name: conditioning.shape(name) for name in self._conditions}
        _, *sides = latents
        return tails | {
            self._timestep: (),
            "latents": (step.LATENTS, *latents),
            "noise_preds": (step.NOISE_PREDS, *latents),
            "noise": latents,
            "kept": latents,
            "mask": (1, *sides),
            "numbers": (step.NUMBERS,),
            "slot_of_row": (),
            "rows_of_slot": (2,),
        }

    def _clear(self) -> None:
        """Write zeros where a slot may be that nobody has written: what is multiplied by 0 must be a number."""
        for name in step.SLOTS:
            memory = self._runner.memory[name]
            self._device.upload(np.zeros(memory.nbytes, np.uint8), memory)
        self._device.synchronize()

    def _shapes(self, tails: Mapping[str, Shape], rows: int) -> dict[str, Shape]:
        """Return the inputs' shapes with `rows` rows; `tails` are their shapes without the first dimension."""
        shapes = {name: (rows, *tail) for name, tail in tails.items()}
        return {**shapes, self._timestep: ()} if self._one_timestep else shapes

    def _legal_rows(self, most_rows: int) -> Sequence[int]:
        return (self._fixed,) if self._fixed else range(1, most_rows + 1)

    def _most(self, tails: Mapping[str, Shape]) -> int:
        """Return the most rows of this size that a call may have.

        Raises:
            ValueError: no profile holds even one.
        """
        if self._fixed:
            return self._fixed
        fitting = [n for n in range(1, self._most_rows + 1) if self._runner.holds(self._shapes(tails, n))]
        if not fitting:
            conditions = {name: tails[name] for name in self._conditions}
            raise ValueError(f"no profile of the engine holds latents of shape {tails['noise']} with {conditions}")
        return fitting[-1]

    def _call(
        self, sample: Floats, timestep: Floats, members: tuple[Conditioning, ...], tails: Mapping[str, Shape]
    ) -> Floats:
        """Predict, as a step of which nothing is kept: each row has a slot."""
        rows = self._padded(len(sample), tails)
        self._arrange([], sample.shape[1:])
        self._gather(members, rows)
        numbers = np.zeros((rows, step.NUMBERS), np.float32)
        numbers[:, step.INPUT_SCALE] = 1
        self._runner.put("noise_preds", np.zeros((rows, *tails["noise_preds"]), np.float32))
        latents = np.zeros((rows, *tails["latents"]), np.float32)
        latents[: len(sample), 0] = sample
        self._runner.put("latents", latents)
        self._run(rows, timestep, numbers, *step.places([1] * len(sample), rows), tails)
        return self._runner.fetch({"out_sample": sample.shape})["out_sample"]

    def _padded(self, rows: int, tails: Mapping[str, Shape]) -> int:
        """Return how many rows a call of `rows` rows is padded to."""
        if self._fixed:
            return self._fixed
        return next((n for n in self._rows if n >= rows), rows) if tails == self._own else rows

    def _gather(self, members: tuple[Conditioning, ...], rows: int) -> None:
        """Copy the conditioning of all rows into the engine's inputs, unless it is there from the last step.

        A padded batch repeats that of its last row.
        """
        if (members, rows) == (self._gathered, self._gathered_rows):
            return
        self._gathered = ()  # a failure below would leave the inputs half written
        slots = [(one, k) for one in members for k in range(len(one))]
        slots += slots[-1:] * (rows - len(slots))
        for slot, (one, k) in enumerate(slots):
            for name, memory in self._resident[one].items():
                size = math.prod(one.shape(name)) * self._types[name].itemsize
                own = k * size % memory.nbytes  # all rows of a request share a slab
                self._device.copy(memory.part(own, size), self._runner.memory[name].part(slot * size, size))
        self._gathered, self._gathered_rows = members, rows


class _Started(NamedTuple):
    mark: Mark
    fetched: Mapping[Job, Made]

    def wait(self) -> Mapping[Job, Made]:
        with ends_the_process_if_lost():
            self.mark.wait()
        copies = (
            one._replace(latents=one.latents.copy(), noise_pred=one.noise_pred.copy()) for one in self.fetched.values()
        )
        return dict(zip(self.fetched, copies, strict=True))


def _any_holds(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> bool:
    return any(profile.holds(shapes) for profile in profiles)
