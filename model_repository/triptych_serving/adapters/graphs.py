"""Two graphs as one: rows with adapters or an image prompt run on the one that has inputs for them, others on the plain one.

So those without cost what they did and have the bytes that they had, whoever comes along.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych_contract.adapters import Adapter, Adapters
from triptych_contract.errors import invalid

from ..denoiser import Conditioning, Denoiser, Floats, Made, parted
from . import WORN
from .mix import INPUTS, Mix

if TYPE_CHECKING:  # what only the loop needs
    from ..job import Job
    from ..steps import Pending, SteppingDenoiser, Steps

Arrays = Mapping[str, NDArray[Any]]
KIND = Adapters()


class AdaptedDenoiser:
    """`Denoiser` over both graphs of one model."""

    def __init__(self, plain: Denoiser, adapted: Denoiser) -> None:
        self._plain, self.adapted = plain, adapted

    def predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        noise_pred = np.empty_like(sample)
        for wears, (rows, members) in parted(conditioning, lambda one: one.adapted).items():
            model = self.adapted if wears else self._plain
            noise_pred[rows] = model.predict(sample[rows], timestep[rows], members)
        return noise_pred

    def release(self, conditioning: Conditioning) -> None:
        self._plain.release(conditioning)
        self.adapted.release(conditioning)


class AdaptedSteps(AdaptedDenoiser):
    """The same, as `Steps` of two models that take them ahead of the loop, on one device."""

    ahead = True

    def __init__(self, plain: SteppingDenoiser, adapted: SteppingDenoiser) -> None:
        super().__init__(plain, adapted)
        self._steps: Mapping[bool, Steps] = {True: adapted, False: plain}

    def admit(self, job: Job) -> None:
        self._steps[_wears(job)].admit(job)

    def start(self, jobs: Sequence[Job], wanted: Collection[Job]) -> Pending:
        started: list[Pending] = []
        try:
            for worn, steps in self._steps.items():
                if mine := [job for job in jobs if _wears(job) == worn]:
                    started.append(steps.start(mine, wanted))
        except Exception:
            _Started(started).wait()  # nobody else will, and the next but one uses its memory again
            raise
        return _Started(started)

    def leave(self, job: Job) -> None:
        for steps in self._steps.values():
            steps.leave(job)


class _Started(NamedTuple):
    parts: Sequence[Pending]

    def wait(self) -> Mapping[Job, Made]:
        return {job: made for part in self.parts for job, made in part.wait().items()}


def _wears(job: Job) -> bool:
    return job.conditioning.adapted


class AdaptedStage:
    """An encoder over both graphs; WORN, (rows, 1) text that `worn` writes, says which adapters each row wears."""

    def __init__(
        self,
        plain: Callable[[Arrays], Arrays],
        adapted: Callable[[Arrays], Arrays],
        mix: Callable[[Sequence[Adapter]], Mix | None],
    ) -> None:
        self._plain, self._adapted, self._mix = plain, adapted, mix

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        texts = [bytes(text) for text in inputs[WORN].reshape(-1)]
        mixes = {text: self._mix(read(text)) if text else None for text in set(texts)}
        others = {name: array for name, array in inputs.items() if name != WORN}
        rows = np.array([mixes[text] is not None for text in texts])
        parts = []
        if not rows.all():
            parts.append((~rows, self._plain({name: array[~rows] for name, array in others.items()})))
        if rows.any():
            worn = [mix for text in texts if (mix := mixes[text]) is not None]
            slabs = {name: _stacked(worn, name) for name in INPUTS}
            parts.append((rows, self._adapted({**{name: array[rows] for name, array in others.items()}, **slabs})))
        return {name: _joined(name, parts) for name in parts[0][1]}


def no_adapters(_asked: Sequence[Adapter]) -> None:
    """Give no mix: a server without a folder of adapters.

    Raises:
        InvalidRequest: always; its own first model asks for none.
    """
    raise invalid(WORN, "some", "none: this server was started without --adapters")


def worn(adapters: Sequence[Adapter]) -> bytes:
    """Write adapters of a checked request for WORN; b"" for none."""
    return json.dumps([one._asdict() for one in adapters]).encode() if adapters else b""


def read(text: bytes) -> list[Adapter]:
    """Read what `worn` wrote.

    Raises:
        InvalidRequest: somebody else wrote it.
    """
    try:
        adapters = KIND.typed(WORN, json.loads(text))
    except (RecursionError, ValueError):
        raise invalid(WORN, "something else", "what the ensemble passes on") from None
    return [*KIND.check(WORN, adapters)]


def _stacked(mixes: Sequence[Mix], name: str) -> Floats:
    slab = functools.cache(lambda mix: mix.slab(name))  # the rows of one request wear the same
    return np.stack([slab(mix) for mix in mixes])


def _joined(name: str, parts: Sequence[tuple[NDArray[np.bool_], Arrays]]) -> NDArray[Any]:
    first = parts[0][1][name]
    whole = np.empty((len(parts[0][0]), *first.shape[1:]), first.dtype)
    for rows, arrays in parts:
        whole[rows] = arrays[name]
    return whole
