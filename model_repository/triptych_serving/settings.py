"""One request's settings: read, checked and completed in one place, before any model runs."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import InvalidRequest
from .manifest import ModelCard

MAX_PROMPT_BYTES = 16_384
MAX_TENANT_BYTES = 128
MAX_GUIDANCE_SCALE = 50.0
MAX_DEADLINE_MS = 2**31 - 1
OUTPUT_FORMATS = ("png", "jpeg", "webp")


@dataclass(frozen=True)
class Settings:
    """A checked request. Sizes in pixels; `guidance_scale` ≤ 1 means guidance is off; `tenant` "" means none."""

    prompt: str
    negative_prompt: str | None
    seed: int
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    sampler: str
    schedule: str
    output_format: str
    deadline_ms: int | None
    tenant: str
    cancel_on_disconnect: bool

    @property
    def guided(self) -> bool:
        """Whether each step needs an unconditional row beside the conditional one."""
        return self.guidance_scale > 1.0

    @classmethod
    def parse(cls, given: Mapping[str, Any], model: ModelCard) -> Settings:
        """Check raw inputs (bytes, int, float, bool by name; absent = default) against what `model` can do.

        Raises:
            InvalidRequest: names the field, what was given and what is legal.
        """
        if unknown := sorted(set(given) - {field.name for field in fields(cls)}):
            raise InvalidRequest(unknown[0], "an unknown input", ", ".join(field.name for field in fields(cls)))
        height, width = _size(given.get("height"), given.get("width"), model)
        sampler, schedule = _sampler(given.get("sampler"), given.get("schedule"), model)
        steps = given.get("num_inference_steps", model.default_num_inference_steps)
        seed = given.get("seed")
        deadline = given.get("deadline_ms")
        return cls(
            prompt=_prompt("prompt", given.get("prompt"), blank_allowed=False),
            negative_prompt=_optional_prompt(given.get("negative_prompt")),
            seed=secrets.randbits(32) if seed is None else _integer("seed", seed, 0, 2**63 - 1),
            num_inference_steps=_integer("num_inference_steps", steps, 1, model.max_num_inference_steps),
            guidance_scale=_guidance(given.get("guidance_scale", model.default_guidance_scale)),
            height=height,
            width=width,
            sampler=sampler,
            schedule=schedule,
            output_format=_choice("output_format", given.get("output_format", b"png"), OUTPUT_FORMATS),
            deadline_ms=None if deadline is None else _integer("deadline_ms", deadline, 1, MAX_DEADLINE_MS),
            tenant=tenant(given.get("tenant")),
            cancel_on_disconnect=bool(given.get("cancel_on_disconnect", False)),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any, model: ModelCard) -> Settings:
        """Settings as another model passed them on; checked again, since anybody can reach every model.

        Raises:
            InvalidRequest: the document is not what `to_json` makes.
        """
        try:
            given = {name: value.encode() if isinstance(value, str) else value for name, value in document.items()}
            return cls.parse({name: value for name, value in given.items() if value is not None}, model)
        except (AttributeError, TypeError) as error:
            raise InvalidRequest("settings", f"a malformed document ({error})", "what `tokenizer` passes on") from None


def _text(field: str, value: bytes, limit: int) -> str:
    if len(value) > limit:
        raise InvalidRequest(field, f"{len(value)} bytes", f"at most {limit} bytes of UTF-8")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(field, f"byte 0x{value[error.start]:02x} at {error.start}", "UTF-8 text") from None
    for position, character in enumerate(text):
        if (ord(character) < 32 and character not in "\t\r\n") or ord(character) == 127:
            raise InvalidRequest(
                field, f"control character U+{ord(character):04X} at {position}", "text, tabs and line ends"
            )
    return text


def _prompt(field: str, value: bytes | None, *, blank_allowed: bool) -> str:
    if value is None:
        raise InvalidRequest(field, "nothing", "one text")
    text = _text(field, value, MAX_PROMPT_BYTES)
    if not blank_allowed and not text.strip():
        raise InvalidRequest(field, "a blank text" if text else "an empty text", "a text that is not blank")
    return text


def _optional_prompt(value: bytes | None) -> str | None:
    return None if value is None else _prompt("negative_prompt", value, blank_allowed=True)


def tenant(value: bytes | None) -> str:
    """A tenant's name; "" for none."""
    return "" if value is None else _text("tenant", value, MAX_TENANT_BYTES)


def _integer(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidRequest(field, value, f"{low} … {high}")
    return int(value)


def _guidance(value: float) -> float:
    if not (math.isfinite(value) and 0.0 <= value <= MAX_GUIDANCE_SCALE):
        raise InvalidRequest("guidance_scale", value, f"0 … {MAX_GUIDANCE_SCALE:g}")
    return float(value)


def _choice(field: str, value: bytes, legal: tuple[str, ...]) -> str:
    name = value.decode("utf-8", "replace")
    if name not in legal:
        raise InvalidRequest(field, repr(name), ", ".join(legal))
    return name


def _sampler(sampler: bytes | None, schedule: bytes | None, model: ModelCard) -> tuple[str, str]:
    tables = model.samplers
    name = _choice("sampler", (sampler or model.default_sampler.encode()), tuple(sorted(tables)))
    if schedule is None:
        default = model.default_schedule
        return name, default if default in tables[name] else next(iter(tables[name]))
    return name, _choice("schedule", schedule, tuple(tables[name]))


def _size(height: int | None, width: int | None, model: ModelCard) -> tuple[int, int]:
    size = {"height": height, "width": width}
    defaults = {"height": model.default_height, "width": model.default_width}
    result = {field: defaults[field] if value is None else int(value) for field, value in size.items()}
    for field, value in result.items():
        if value % model.size_multiple or not model.min_size <= value <= model.max_size:
            raise InvalidRequest(field, value, _legal_sizes(value, model))
    return result["height"], result["width"]


def _legal_sizes(value: int, model: ModelCard) -> str:
    step = model.size_multiple
    below = min(max(value // step * step, model.min_size), model.max_size)
    above = min(max(-(-value // step) * step, model.min_size), model.max_size)
    nearest = f"{below}" if below == above else f"{below} or {above}"
    return f"multiples of {step} from {model.min_size} to {model.max_size}, the nearest {nearest}"
