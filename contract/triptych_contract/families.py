"""The families that there are."""

from __future__ import annotations

from collections.abc import Mapping

from . import sdxl, stable_cascade
from .errors import invalid
from .family import Family

FAMILIES: Mapping[str, Family] = {one.name: one for one in (sdxl.FAMILY, stable_cascade.FAMILY)}
# Whom a request is for that names no model, and what the first receipts, which did not say, came from.
DEFAULT = next(iter(FAMILIES.values()))
# What any input is sent as: a name has one type, whichever family it is for.
DATATYPES = {name: one.kind.datatype for family in FAMILIES.values() for name, one in family.parameters.items()}


def family_of(ensemble: str) -> Family:
    """Give the family of an ensemble; one that is not ours is asked as the default is."""
    return FAMILIES.get(ensemble, DEFAULT)


def known(name: object) -> Family:
    """Give the family of a name.

    Raises:
        InvalidRequest: there is none.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise invalid("family", repr(name), ", ".join(FAMILIES))
    return FAMILIES[name]


def stranger(what: str, name: str, ensemble: str) -> str:
    """Tell what an error calls an input that `ensemble` does not have: `what` of another one, or nobody's."""
    owner = next((other for other, family in FAMILIES.items() if name in family.parameters), None)
    return f"{what} of {owner} and not of {ensemble}" if owner else "an unknown parameter"
