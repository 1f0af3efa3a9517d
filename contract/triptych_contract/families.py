"""The families that there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import sdxl, stable_cascade
from .cards import CardError, ModelCard
from .errors import InvalidRequest, invalid, shown
from .family import Family

FAMILIES: Mapping[str, Family] = {one.name: one for one in (sdxl.FAMILY, stable_cascade.FAMILY)}
# Whom a request is for that names no model, and what the first receipts, which did not say, came from.
DEFAULT = next(iter(FAMILIES.values()))


def family_of(ensemble: str) -> Family:
    """Give the family of an ensemble; one that is not ours is asked as the default is."""
    return FAMILIES.get(ensemble, DEFAULT)


def known(name: object) -> Family:
    """Give the family of a name.

    Raises:
        InvalidRequest: there is none.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise invalid("family", shown(name), ", ".join(FAMILIES))
    return FAMILIES[name]


def read_card(described: Any) -> tuple[Family, ModelCard]:
    """Read what a manifest, or a server, says of one model.

    Raises:
        CardError: it is of another version of Triptych.
    """
    try:
        family = known(described["family"])
        return family, family.card.from_json(described["model"])
    except (AttributeError, InvalidRequest, LookupError, TypeError, ValueError) as error:
        raise CardError(str(error) if isinstance(error, InvalidRequest) else repr(error)) from None


def stranger(what: str, name: str, ensemble: str) -> str:
    """Tell what an error calls an input that `ensemble` does not have: `what` of another one, or nobody's."""
    owner = next((other for other, family in FAMILIES.items() if name in family.parameters), None)
    return f"{what} of {owner} and not of {ensemble}" if owner else "an unknown parameter"
