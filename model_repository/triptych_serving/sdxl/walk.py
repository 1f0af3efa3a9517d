"""The rows an SDXL request takes: where it starts, where the refiner takes over, until when it is guided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triptych_contract.control import Control
from triptych_contract.errors import invalid
from triptych_contract.sdxl.card import SdxlCard
from triptych_contract.sdxl.settings import SdxlSettings

from ..tables import SamplerTable, SamplerTables
from ..walk import Walk

BASE, REFINER = SdxlCard.denoisers


def walk(settings: SdxlSettings, tables: SamplerTables, model: SdxlCard) -> Walk:
    """The walk that a request asks for.

    Raises:
        InvalidRequest: `denoising_end` leaves one of the two models without a row.
    """
    steps, first = settings.num_inference_steps, 0
    if settings.strength is not None:
        first = (steps - int(steps * settings.strength)) * int(tables.order)
    table = tables.steps(steps, first)
    denoisers = (BASE,) * len(table)
    follows = tuple(_on(settings.control, row, len(table)) for row in range(len(table))) if settings.control else ()
    if settings.denoising_end is not None:
        base, refiner = _handed_over(settings.denoising_end, steps, tables, table, model)
        table, denoisers = base.then(refiner), (BASE,) * len(base) + (REFINER,) * len(refiner)
        follows = follows and follows[: len(base)] + ((),) * len(refiner)
    guided = settings.guided(model) & (np.arange(len(table)) < _share(settings.guidance_end, len(table)))
    return Walk(table, denoisers, guided, follows)


def _on(controls: Sequence[Control], row: int, rows: int) -> tuple[int, ...]:
    """Which controls are on in a row, of so many, as diffusers says: those within whose share of the steps the row is whole."""
    return tuple(
        place
        for place, one in enumerate(controls)
        if one.scale and one.start <= row / rows and (row + 1) / rows <= one.end
    )


def _handed_over(
    denoising_end: float, steps: int, tables: SamplerTables, table: SamplerTable, model: SdxlCard
) -> tuple[SamplerTable, SamplerTable]:
    """The base's rows and the refiner's, cut where diffusers cuts them (`denoising_end`, then `get_timesteps`)."""
    cutoff = round(model.num_train_timesteps - denoising_end * model.num_train_timesteps)
    whole = tables.steps(steps)
    left = int((whole.timestep < cutoff).sum())
    if table.order == 2 and left % 2 == 0:  # a second-order step is not cut in its middle: diffusers takes it again
        left += 1
    base = table[: int((table.timestep >= cutoff).sum())]
    if left == 0 or len(base) == 0:
        who = "refiner" if left == 0 else "base"
        raise invalid("denoising_end", f"{denoising_end:g} of {steps} steps", f"a value that leaves the {who} a step")
    return base, tables.steps(steps, len(whole) - left)


def _share(fraction: float, whole: int) -> int:
    """`fraction` of `whole`, rounded down but for the error of binary fractions."""
    return int(round(fraction * whole, 6))
