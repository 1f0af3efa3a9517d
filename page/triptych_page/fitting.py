"""Settings from elsewhere, made to fit what this server's models take; what cannot be honoured is said."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from .forms import FORMATS, MAX_PROMPT_BYTES, Form, Number
from .seeds import MAX_SEED
from .sizes import nearest_side

# What 32 bits hold, less what rounding up may add.
LARGEST = 3e38


def form_for(forms: Mapping[str, Form], family: str, settings: Mapping[str, Any], model: str = "") -> Form | None:
    """The form that fits best: of the family, refined where the settings say so, of the same model's name."""
    refined = settings.get("denoising_end") is not None
    cascade = family == "stable_cascade"
    fitting = [form for form in forms.values() if bool(form.samplers) != cascade]
    return max(fitting, key=lambda form: (form.refined == refined, form.model == model), default=None)


def fit(form: Form, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that `form` can honour, and a sentence for each that it cannot, or not as it stands."""
    fitted: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in settings.items():
        if value is None or value == "":
            continue
        if name not in form.names():
            left_out.append(f"{name}: {shown(value)}, which {form.title} does not have")
            continue
        taken, why = _fit_one(form, name, value)
        if taken is not None:
            fitted[name] = taken
        if why:
            left_out.append(why)
    return _with_schedule(form, fitted, left_out), left_out


def short(value: float) -> float:
    """A number as people wrote it, of the 32 bits that it was sent with: 7.3 rather than 7.300000190734863."""
    if not abs(value) < LARGEST:  # nor a number that is none
        return float(value)
    sent = struct.pack("<f", value)
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((number for number in candidates if struct.pack("<f", number) == sent), float(value))


def plain(value: float) -> str:
    """`short` without an empty fraction: 7 rather than 7.0."""
    return f"{short(value):.9g}"


def shown(value: object) -> str:
    """A value in a sentence; floats as people write them."""
    text = plain(value) if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _fit_one(form: Form, name: str, value: Any) -> tuple[Any, str]:
    if name in ("height", "width"):
        return _fit_side(form, name, value)
    if name == "sampler":
        return _fit_sampler(form, value)
    if name == "seed":
        legal = isinstance(value, int) and 0 <= value <= MAX_SEED
        return (value, "") if legal else (None, f"seed: {shown(value)}; legal: 0 … {MAX_SEED}")
    if name in form.numbers:
        return _fit_number(form.numbers[name], value)
    if name in ("init_image", "mask"):
        return None, f"{name}: the picture itself is not in the file; add it again"
    return _fit_text(name, value)


def _fit_text(name: str, value: Any) -> tuple[Any, str]:
    if not isinstance(value, str):
        return None, f"{name}: {shown(value)}, which is no text"
    if name == "output_format" and value not in FORMATS:
        return None, f"{name}: {shown(value)}; legal: {', '.join(FORMATS)}"
    if len(value.encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
        return None, f"{name}: longer than {MAX_PROMPT_BYTES} bytes"
    return value, ""


def _fit_side(form: Form, name: str, value: Any) -> tuple[Any, str]:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e6:
        return None, f"{name}: {shown(value)}, which is no size"
    nearest = nearest_side(value, form.sides)
    return nearest, "" if nearest == value else f"{name}: {shown(value)} is not legal here, {nearest} is the nearest"


def _fit_sampler(form: Form, value: Any) -> tuple[Any, str]:
    if not isinstance(value, str):
        return None, f"sampler: {shown(value)}, which is no text"
    wanted = value.lower()
    for name, sampler in form.samplers.items():
        if wanted in (name.lower(), sampler.a1111.lower(), sampler.diffusers.lower()):
            return name, ""
    return None, f"sampler: {shown(value)}, which this server does not have; {form.sampler} is taken"


def _fit_number(number: Number, value: Any) -> tuple[Any, str]:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
        return None, f"{number.name}: {shown(value)}, which is no number"
    inside = number.low < value < number.high if number.between else number.low <= value <= number.high
    if not inside or (number.whole and value != int(value)):
        return None, f"{number.name}: {shown(value)}; legal: {number.legal}"
    return (int(value) if number.whole else short(float(value))), ""


def _with_schedule(form: Form, fitted: dict[str, Any], left_out: list[str]) -> dict[str, Any]:
    """Schedule and steps hang on the sampler, which may stand behind them in the file."""
    if not form.samplers:
        return fitted
    sampler = fitted.get("sampler", form.sampler)
    schedule = fitted.get("schedule")
    if schedule is not None and schedule not in form.samplers[sampler].schedules:
        del fitted["schedule"]
        left_out.append(f"schedule: {shown(schedule)}, which {sampler} does not have here")
    most = form.max_steps(sampler, fitted.get("schedule"))
    if fitted.get("num_inference_steps", 1) > most:
        left_out.append(f"num_inference_steps: {fitted['num_inference_steps']}; {sampler} ends at {most}")
        fitted["num_inference_steps"] = most
    return fitted
