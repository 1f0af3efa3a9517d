"""The step of a sampler where the model's own graph takes it: what its inputs and outputs are then, and the numbers of a step.

The export appends the arithmetic of `triptych_serving.tables` to a denoiser's graph (`triptych_export.step`). Latents and history
then stay where the graph runs. A batch has a slot for each request, as many as it has rows: a guided request has two rows
and one slot, the last slots are empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .denoiser import Floats
from .manifest import TIMESTEPS

if TYPE_CHECKING:
    from .job import Job

# How much history slots hold: that of the widest tables.
LATENTS, NOISE_PREDS = 3, 5
# The columns of `numbers`, which has a row for each slot. The table's coefficients follow, of latents and then of model outputs.
INPUT_SCALE, GUIDANCE, RESCALE, NOISE, MASKED, COEFFICIENTS = range(6)
NUMBERS = COEFFICIENTS + LATENTS + NOISE_PREDS
# Inputs that a step leaves for the next one, by the outputs that they are read from.
CARRIED = {"next_latents": "latents", "next_noise_preds": "noise_preds"}

# Inputs with a part for each slot that is not written for every step.
SLOTS = (*CARRIED.values(), "noise", "mask", "kept")

Specs = dict[str, dict[str, Any]]


def taken(model: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a stage with these inputs denoises, so that its engine takes the step."""
    return not model.keys().isdisjoint(TIMESTEPS)


def inputs(model: Mapping[str, Mapping[str, Any]]) -> Specs:
    """The inputs of a graph with the step, of those that the manifest has of the model: `sample` becomes the slots' contents."""
    batch, *latents = model["sample"]["shape"]
    _, *sides = latents
    shapes: dict[str, Sequence[int | str]] = {
        "latents": [batch, LATENTS, *latents],  # the newest first
        "noise_preds": [batch, NOISE_PREDS, *latents],
        "noise": [batch, *latents],
        "mask": [batch, 1, *sides],  # as in `phase.Blend`
        "kept": [batch, *latents],
        "numbers": [batch, NUMBERS],
    }
    indices: dict[str, Sequence[int | str]] = {"slot_of_row": [batch], "rows_of_slot": [batch, 2]}
    return {
        **{name: dict(spec) for name, spec in model.items() if name != "sample"},
        **{name: {"dtype": "float32", "shape": list(shape)} for name, shape in shapes.items()},
        **{name: {"dtype": "int32", "shape": list(shape)} for name, shape in indices.items()},
    }


def outputs(model: Mapping[str, Mapping[str, Any]], made: Mapping[str, Mapping[str, Any]]) -> Specs:
    """The outputs of a graph with the step, of the model's inputs and outputs."""
    given = inputs(model)
    return {**{name: dict(spec) for name, spec in made.items()}, **{new: given[old] for new, old in CARRIED.items()}}


def numbers(job: Job) -> Floats:
    """What a job's next step is made of, (NUMBERS,) float32.

    Raises:
        ValueError: its table looks back further than slots do.
    """
    table, row, guided = job.table, job.step, job.rows > 1
    made = np.zeros(NUMBERS, np.float32)
    made[INPUT_SCALE] = table.input_scale[row]
    made[GUIDANCE] = job.phase.guidance_scale if guided else 0
    made[RESCALE] = job.phase.guidance_rescale if guided else 0
    made[NOISE] = table.noise[row] if table.draws[row] else 0
    made[MASKED] = job.blend is not None
    for begin, most, given in (
        (COEFFICIENTS, LATENTS, table.latents[row]),
        (COEFFICIENTS + LATENTS, NOISE_PREDS, table.noise_preds[row]),
    ):
        if len(given) > most:
            raise ValueError(f"sampler table: {len(given)} of the history given; legal: at most {most}")
        made[begin : begin + len(given)] = given
    return made


def places(rows: Sequence[int], padded: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Which slot each row of a batch of `padded` rows reads, (padded,), and which rows each slot, (padded, 2), the conditional
    one last. `rows` are those of each slot's request; the rows beyond repeat the last one's."""
    slot_of_row = np.full(padded, len(rows) - 1, np.int32)
    slot_of_row[: sum(rows)] = np.repeat(np.arange(len(rows)), rows)
    ends = np.cumsum(rows)
    rows_of_slot = np.zeros((padded, 2), np.int32)
    rows_of_slot[: len(rows)] = np.stack([ends - rows, ends - 1], axis=1)
    return slot_of_row, rows_of_slot
