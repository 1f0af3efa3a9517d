"""Where the latents and the history of requests lie on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..job import Job
from ..phase import Phase
from ..step import LATENTS, NOISE_PREDS
from .device import Device, DeviceError, Memory
from .staging import Staging

# By input of the engine: how many latents of one request a slot holds.
HISTORY = {"latents": LATENTS, "noise_preds": NOISE_PREDS}


@dataclass(eq=False)
class Home:
    """A phase's latents and history of one request: in memory of their own, or in the slot where they are newer."""

    phase: Phase
    memory: Memory
    own: Mapping[str, Memory]
    place: Mapping[str, Memory]  # where the newest are

    def move(self, device: Device, place: Mapping[str, Memory]) -> None:
        """Copy the newest to another place, which is where they are from now on."""
        for name, there in place.items():
            device.copy(self.place[name], there)
        self.place = place


class Homes:
    """The homes of all jobs that have made a step, of all denoisers of one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._homes: dict[Job, Home] = {}

    def __len__(self) -> int:
        return len(self._homes)

    def __getitem__(self, job: Job) -> Home:
        return self._homes[job]

    def admit(self, job: Job, staging: Staging) -> None:
        """Upload a job's first latents, unless those of its phase are there.

        Raises:
            DeviceError: the device refuses, or has too little memory; nothing is kept.
        """
        home = self._homes.get(job)
        if home is not None and home.phase is job.phase:
            return
        self.leave(job)
        first = staging.array((sum(HISTORY.values()), *job.shape), np.float32)
        first.fill(0)
        first[0] = job.latents[0]
        memory = self._device.allocate(first.nbytes, "a request's latents")
        try:
            self._device.upload(first, memory)
        except DeviceError:
            self._device.free(memory)
            raise
        own = _parts(memory, job.shape)
        self._homes[job] = Home(job.phase, memory, own, own)

    def leave(self, job: Job) -> None:
        """Free a job's memory, if it has any."""
        home = self._homes.pop(job, None)
        if home is not None:
            home.place = {}
            self._device.free(home.memory)


def slot_bytes(shape: Sequence[int]) -> dict[str, int]:
    """By input of the engine, the bytes that a slot has for latents of `shape`, (C, h, w)."""
    return {name: count * math.prod(shape) * np.dtype(np.float32).itemsize for name, count in HISTORY.items()}


def _parts(memory: Memory, shape: Sequence[int]) -> dict[str, Memory]:
    parts, begin = {}, 0
    for name, nbytes in slot_bytes(shape).items():
        parts[name] = memory.part(begin, nbytes)
        begin += nbytes
    return parts
