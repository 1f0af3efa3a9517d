"""A1111's names for what the contract has; which tools write into files and send over HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping

from triptych_contract.family import Family

# The schedule that a name means; older tools put it at the end of the sampler.
SCHEDULES = {
    "Karras": "karras",
    "Exponential": "exponential",
    "Beta": "beta",
    "Uniform": "default",
    "Automatic": "default",
    "Normal": "default",
}
# What A1111 reads in a prompt and we send as it stands.
EMPHASIS = re.compile(r"[(\[][^()\[\]]+:\s*[\d.]+\s*[)\]]")
# A1111 counts the last layer as 1.
FIRST = {"clip_skip": 1}


def names(family: Family) -> Mapping[str, str]:
    """Give our name of each parameter by A1111's."""
    return {one.a1111: name for name, one in family.parameters.items() if one.a1111}


def schedule(name: str) -> str:
    """Give our name of a schedule, whether it is known or not."""
    return SCHEDULES.get(name.capitalize(), name.lower().replace(" ", "_"))


def split_sampler(name: str) -> tuple[str, str]:
    """Give `DPM++ 2M Karras` as the sampler's name and our name of the schedule, "" where it names none."""
    for word, ours in SCHEDULES.items():
        if name.endswith(f" {word}"):
            return name[: -len(word) - 1], ours
    return name, ""
