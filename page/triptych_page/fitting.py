"""Settings from elsewhere, made to fit what this server's models take; what cannot be honoured is said."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from triptych.errors import InvalidRequest
from triptych_contract.family import Family
from triptych_contract.parameters import Pair, Side

from .forms import ANY_PICTURE, FILES, LISTS, STACKS, Form
from .sizes import nearest_side

# What 32 bits hold, less what rounding up may add.
LARGEST = 3e38


def form_for(forms: Mapping[str, Form], family: Family, settings: Mapping[str, Any], model: str = "") -> Form | None:
    """Give the form of the family that fits best: has most of the settings, and the model's name."""
    asked = {name for name, value in settings.items() if value is not None}
    fitting = [form for form in forms.values() if form.family is family]
    return max(fitting, key=lambda form: (len(asked & form.parameters.keys()), form.card.name == model), default=None)


def fit(form: Form, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Give the settings that `form` can honour, and a sentence for each that it cannot, or not as it stands."""
    fitted: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in settings.items():
        if value is None or value == "":
            continue
        if name not in form.parameters:
            left_out.append(f"{name}: {shown(value)}, which {form.title} does not have")
        elif name in FILES:
            left_out.append(f"{name}: the picture itself is not in the file; add it again")
        else:
            try:
                fitted[name] = _fitted(form, name, value, left_out)
            except InvalidRequest as error:
                left_out += [str(problem.cut) for problem in error.problems]
    for name in fitted.keys() & LISTS:
        offered = form.listed(name) or {}
        left_out += [
            f"{name}: {one}, which this server does not have" for one in fitted[name] if one.name not in offered
        ]
        fitted[name] = tuple(one for one in fitted[name] if one.name in offered)
        if not fitted[name]:
            del fitted[name]
    for problem in form.read({**fitted, **_to_be_added(form, fitted)}).problems:  # what hangs on several
        if fitted.pop(problem.field, None) is not None:
            left_out.append(str(problem))
    return _news(form, fitted), left_out


def _to_be_added(form: Form, fitted: Mapping[str, Any]) -> dict[str, Any]:
    """Stand in for the pictures that somebody will add again, so that what follows them stays."""
    followed = {stack: fitted.get(form.parameters[stack].needs) for stack in STACKS if stack in form.parameters}
    return {stack: [ANY_PICTURE] * len({one.image for one in names}) for stack, names in followed.items() if names}


def _fitted(form: Form, name: str, value: Any, left_out: list[str]) -> Any:
    kind = form.parameters[name].kind
    taken = kind.check(name, kind.typed(name, value))
    if isinstance(kind, Side) and (nearest := nearest_side(taken, form.sides)) != taken:
        left_out.append(f"{name}: {taken} is not legal here, {nearest} is the nearest")
        return nearest
    return short(taken) if isinstance(taken, float) else taken


def _news(form: Form, fitted: dict[str, Any]) -> dict[str, Any]:
    """Leave out the pairs that receipts spell out and that stand in anyway: they are to follow the size when it is changed."""
    pairs = {name for name in fitted if isinstance(form.parameters[name].kind, Pair)}
    own = form.read({name: value for name, value in fitted.items() if name not in pairs}).values
    return {name: value for name, value in fitted.items() if name not in pairs or value != own.get(name)}


def short(value: float) -> float:
    """Give a number as people wrote it, of the 32 bits that it was sent with: 7.3 rather than 7.300000190734863."""
    if not abs(value) < LARGEST:  # nor a number that is none
        return float(value)
    sent = struct.pack("<f", value)
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((number for number in candidates if struct.pack("<f", number) == sent), float(value))


def plain(value: float) -> str:
    """Write `short` without an empty fraction: 7 rather than 7.0."""
    return f"{short(value):.9g}"


def shown(value: object) -> str:
    """Write a value in a sentence; floats as people write them."""
    text = plain(value) if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
