"""What a served SDXL can sample with, as a table that has the names of other tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from ..cards import TableCard
from ..family import Samplers
from .card import SamplerCard, SdxlCard

HEADER = ("sampler", "A1111", "diffusers", "steps", "schedules")


def samplers(card: SdxlCard) -> Samplers:
    """Tell a model's samplers and schedules."""
    chosen = {"default_sampler": card.default_sampler, "default_schedule": card.default_schedule}
    return Samplers(
        {**chosen, "samplers": {name: asdict(one) for name, one in card.samplers.items()}}, list(_table(card))
    )


def _table(card: SdxlCard) -> Iterator[str]:
    rows = [HEADER, *(_row(name, one, card) for name, one in card.samplers.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    yield "* what a request gets that names none; steps: the most"


def _row(name: str, sampler: SamplerCard, card: SdxlCard) -> Sequence[str]:
    most = max(table.max_steps for table in sampler.schedules.values())
    default = card.default_sampler == name
    schedules = (
        _schedule(schedule, table, most, default and card.default_schedule == schedule)
        for schedule, table in sampler.schedules.items()
    )
    return f"{name} *" if default else name, sampler.a1111, sampler.diffusers, str(most), ", ".join(schedules)


def _schedule(name: str, table: TableCard, most: int, default: bool) -> str:
    limits = [f"{table.max_steps} steps"] * (table.max_steps < most) + ["no mask"] * (not table.inpaint)
    return name + " *" * default + (f" ({', '.join(limits)})" if limits else "")
