"""Checks in the page what the server would refuse, in the same words, so that nothing wrong is sent."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from triptych.errors import InvalidRequest, invalid

from .forms import FORMATS, MAX_PROMPT_BYTES, Form, Number
from .seeds import parse_seed, seeds_from
from .sizes import check_side

MAX_IMAGES = 16
# What the server does where a request names none; the mask's is diffusers' own.
STRENGTH, MASKED_STRENGTH = 0.3, 0.9999
ABSENT = (None, "")


def check(form: Form, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[InvalidRequest]]:
    """The request that `values` ask for, and all that is wrong with them; values that `form` does not have are left out.

    Args:
        form: what the chosen model takes.
        values: the page's fields by the contract's names; the seed as text; None or "" is not given.
    """
    problems: list[InvalidRequest] = []
    request: dict[str, Any] = {}
    for name, checker in _checkers(form, values).items():
        try:
            if (value := checker()) is not None:
                request[name] = value
        except InvalidRequest as problem:
            problems.append(problem)
    return request, problems


def check_count(n: Any, seed: int | None) -> int:
    """How many pictures to make.

    Raises:
        InvalidRequest: not a whole number in 1 … 16, or more than there are seeds left.
    """
    count = _whole("n", n, 1, MAX_IMAGES)
    seeds_from(seed or 0, count)
    return count


def _checkers(form: Form, values: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    def number(name: str) -> Callable[[], Any]:
        return lambda: _number(form.numbers[name], values.get(name))

    checkers: dict[str, Callable[[], Any]] = {
        "prompt": lambda: _prompt(values.get("prompt")),
        "negative_prompt": lambda: _text("negative_prompt", values.get("negative_prompt") or None),
        "seed": lambda: parse_seed(values.get("seed")),
        "height": lambda: _side("height", form, values),
        "width": lambda: _side("width", form, values),
        "output_format": lambda: _choice("output_format", values.get("output_format"), FORMATS),
        **{name: number(name) for name in form.numbers},
        "num_inference_steps": lambda: _steps(form, values),
    }
    if form.samplers:
        checkers["sampler"] = lambda: _choice("sampler", values.get("sampler"), form.samplers)
        checkers["schedule"] = lambda: _schedule(form, values)
    if form.takes_pictures:
        checkers["init_image"] = lambda: values.get("init_image")
        checkers["mask"] = lambda: _mask(form, values)
        checkers["strength"] = lambda: _strength(form, values)
    return checkers


def _prompt(text: Any) -> Any:
    if not isinstance(text, str) or not text.strip():
        raise invalid("prompt", "a blank text" if text else "an empty text", "a text that is not blank")
    return _text("prompt", text)


def _text(name: str, text: Any) -> Any:
    if text is None:
        return None
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_PROMPT_BYTES:
        raise invalid(name, f"{size} bytes", f"at most {MAX_PROMPT_BYTES} bytes of UTF-8")
    for position, character in enumerate(text):
        if _control(character):
            what = f"control character U+{ord(character):04X} at {position}"
            raise invalid(name, what, "text, tabs and line ends")
    return text


def _control(character: str) -> bool:
    return (ord(character) < 32 and character not in "\t\r\n") or ord(character) == 127


def _choice(name: str, given: Any, legal: Any) -> Any:
    if given in ABSENT:
        return None
    if not isinstance(given, str) or given not in legal:
        raise invalid(name, repr(given), ", ".join(legal))
    return given


def _number(number: Number, given: Any) -> float | int | None:
    if given in ABSENT:
        return None
    if number.whole:
        return _whole(number.name, given, number.low, number.high)
    value = _real(number.name, given)
    inside = number.low < value < number.high if number.between else number.low <= value <= number.high
    if not inside:
        raise invalid(number.name, f"{value:g}", number.legal)
    return value


def _whole(name: str, given: Any, low: float, high: float) -> int:
    value = _real(name, given)
    if value != int(value) or not low <= value <= high:
        raise invalid(name, f"{value:g}", f"{low:g} … {high:g}")
    return int(value)


def _real(name: str, given: Any) -> float:
    number = isinstance(given, numbers.Real) and not isinstance(given, bool)
    if not number or not math.isfinite(given):
        raise invalid(name, repr(given), "a number")
    return float(given)


def _side(name: str, form: Form, values: Mapping[str, Any]) -> int | None:
    given = values.get(name)
    if given in ABSENT:
        return None
    return check_side(name, _whole(name, given, 0, 2**31 - 1), form.sides)


def _steps(form: Form, values: Mapping[str, Any]) -> float | int | None:
    number = form.numbers["num_inference_steps"]
    if not form.samplers or values.get("sampler") not in (*ABSENT, *form.samplers):
        return _number(number, values.get(number.name))  # a wrong sampler is a problem of its own
    most = form.max_steps(values.get("sampler"), values.get("schedule"))
    return _number(Number(number.name, number.low, most, number.default, whole=True), values.get(number.name))


def _schedule(form: Form, values: Mapping[str, Any]) -> Any:
    sampler = values.get("sampler") or form.sampler
    if sampler not in form.samplers:
        return None
    return _choice("schedule", values.get("schedule"), form.samplers[sampler].schedules)


def _mask(form: Form, values: Mapping[str, Any]) -> Any:
    mask = values.get("mask")
    if mask is None:
        return None
    if values.get("init_image") is None:
        raise invalid("mask", "without init_image", "only together with init_image")
    if form.refined:
        raise invalid("denoising_end", "with mask", "only without mask")
    sampler = values.get("sampler") or form.sampler
    schedule = form.schedule_of(sampler, values.get("schedule")) if sampler in form.samplers else ""
    known = form.samplers[sampler].schedules.get(schedule) if schedule else None
    if known and not known.inpaint:
        raise invalid("mask", f"with sampler {sampler}", "any sampler without a hidden state, such as euler")
    return mask


def _strength(form: Form, values: Mapping[str, Any]) -> float | int | None:
    given = _number(form.numbers["strength"], values.get("strength"))
    if values.get("init_image") is None:
        return None  # a field that the page keeps filled in; without a picture it means nothing
    default = STRENGTH if values.get("mask") is None else MASKED_STRENGTH
    strength = default if given is None else given
    steps = values.get("num_inference_steps") or form.numbers["num_inference_steps"].default
    if isinstance(steps, (int, float)) and steps >= 1 and int(steps * strength) < 1:
        least = math.ceil(1000 / steps) / 1000
        raise invalid("strength", f"{strength:g} of {steps:g} steps", f"at least {least}, for one step")
    return given
