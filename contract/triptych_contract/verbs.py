"""What may be asked of the loop itself."""

from __future__ import annotations

from collections.abc import Mapping

from .families import FAMILIES
from .parameters import MAX_INT64, Choice, Flag, Kind, LongInteger, Text
from .settings import TENANT

LOOP = "denoise"
ACTIONS = ("cancel", "describe", "stats", "verify", "watch")
INPUTS: Mapping[str, Kind] = {
    "action": Choice(ACTIONS),
    "id": Text(64),
    "tenant": TENANT,
    "since": LongInteger(-1, MAX_INT64),
    "preview": Flag(),
}
# What any input of any model that callers reach is sent as: a name has one type, whichever model it is for.
DATATYPES = {
    **{name: one.kind.datatype for family in FAMILIES.values() for name, one in family.parameters.items()},
    **{name: kind.datatype for name, kind in INPUTS.items()},
}
