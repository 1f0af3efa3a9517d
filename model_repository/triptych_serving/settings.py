"""One request's settings: read, checked and completed in one place, before any model runs. Each family has its own."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from . import checks
from .errors import InvalidRequest

MAX_PROMPT_BYTES = 16_384
MAX_TENANT_BYTES = 128
MAX_GUIDANCE_SCALE = 50.0
MAX_DEADLINE_MS = 2**31 - 1
OUTPUT_FORMATS = ("png", "jpeg", "webp")


@dataclass(frozen=True)
class Settings:
    """What a checked request of any family has. Sizes in pixels; `tenant` "" means none.

    None stands for what was not asked for: no deadline; a negative prompt of None is not an empty one.
    """

    prompt: str
    negative_prompt: str | None
    seed: int
    height: int
    width: int
    output_format: str
    deadline_ms: int | None
    tenant: str
    cancel_on_disconnect: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def common(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Settings` but the size, from raw inputs.

    Raises:
        InvalidRequest: names the field, what was given and what is legal.
    """
    return {
        "prompt": _prompt(given.get("prompt")),
        "negative_prompt": optional(checks.text, given, "negative_prompt", MAX_PROMPT_BYTES),
        "seed": checks.integer("seed", given.get("seed", secrets.randbits(32)), 0, 2**63 - 1),
        "output_format": checks.choice("output_format", given.get("output_format", b"png"), OUTPUT_FORMATS),
        "deadline_ms": optional(checks.integer, given, "deadline_ms", 1, MAX_DEADLINE_MS),
        "tenant": tenant(given.get("tenant")),
        "cancel_on_disconnect": bool(given.get("cancel_on_disconnect", False)),
    }


def known(given: Mapping[str, Any], settings: type[Settings]) -> None:
    """Refuse inputs that a family does not have."""
    names = [field.name for field in fields(settings)]
    if unknown := sorted(set(given) - set(names)):
        raise InvalidRequest(unknown[0], "an unknown input", ", ".join(names))


def optional(check: Any, given: Mapping[str, Any], field: str, *limits: Any) -> Any:
    """The checked value of an input, or None where it was not given."""
    return None if field not in given else check(field, given[field], *limits)


def tenant(value: bytes | None) -> str:
    """A tenant's name; "" for none."""
    return "" if value is None else checks.text("tenant", value, MAX_TENANT_BYTES)


def guidance(field: str, given: Mapping[str, Any], default: float) -> float:
    """A guidance scale; on above 1."""
    return checks.number(field, given.get(field, default), 0, MAX_GUIDANCE_SCALE)


def _prompt(value: bytes | None) -> str:
    if value is None:
        raise InvalidRequest("prompt", "nothing", "one text")
    return checks.text("prompt", value, MAX_PROMPT_BYTES, blank_allowed=False)
