"""One request's settings: read, checked and completed in one place, before any model runs. Each family has its own."""

from __future__ import annotations

import functools
import secrets
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, cast

from .cards import ModelCard
from .errors import InvalidRequest, Problem, invalid, shown
from .parameters import (
    MAX_INT32,
    MAX_INT64,
    PARAMETER,
    Choice,
    Flag,
    Integer,
    Kind,
    LongInteger,
    OfModel,
    Parameter,
    Side,
    Text,
    parameter,
)

AnySettings = TypeVar("AnySettings", bound="Settings")

MAX_PROMPT_BYTES = 16_384
MAX_TENANT_BYTES = 128
MAX_GUIDANCE_SCALE = 50.0
OUTPUT_FORMATS = ("png", "jpeg", "webp")
TENANT = Text(MAX_TENANT_BYTES)


@dataclass(frozen=True)
class Settings(ABC):
    """A checked request of any family; each field is one parameter. Sizes in pixels; `tenant` "" means none.

    None stands for what was not asked for: no deadline; a negative prompt of None is not an empty one. The order is that of
    receipts, whose bytes must not change: new fields go to the end of a class.
    """

    prompt: str = parameter(Text(MAX_PROMPT_BYTES, blank=False), "What to draw.", required=True, label="Prompt")
    negative_prompt: str | None = parameter(
        Text(MAX_PROMPT_BYTES),
        "What not to draw. Leaving it out and giving an empty text may differ.",
        default_words="missing",
        note="*missing* and *empty* differ where the model's `force_zeros_for_empty_prompt` says so",
        group="picture",
        label="Negative prompt",
    )
    seed: int = parameter(
        LongInteger(0, MAX_INT64),
        "The same seed makes the same picture.",
        default_words="drawn by the server",
        note='noise is that of `torch.Generator("cpu").manual_seed(seed)`',
        group="picture",
        label="Seed",
        a1111="Seed",
    )
    height: int = parameter(
        Side(),
        "Height in pixels.",
        default_words="the model's; with `init_image` its own, rounded down, unless `padding_mask_crop` is given",
        group="picture",
        label="Height",
    )
    width: int = parameter(
        Side(),
        "Width in pixels.",
        default_words="the model's; with `init_image` its own, rounded down, unless `padding_mask_crop` is given",
        group="picture",
        label="Width",
    )
    output_format: str = parameter(
        Choice(OUTPUT_FORMATS), "File format.", default="png", group="output", label="Format"
    )
    deadline_ms: int | None = parameter(
        Integer(1, MAX_INT32),
        "Milliseconds that the server may take, counted from the request's arrival.",
        default_words="none",
        delivery=True,
    )
    tenant: str = parameter(
        TENANT,
        "Whom the request belongs to: tenants are served in turn and cannot see each other's jobs.",
        default="",
        default_words="none",
        delivery=True,
    )
    cancel_on_disconnect: bool = parameter(
        Flag(), "Stop the job when its watcher goes away.", default=False, delivery=True
    )
    use_cache: bool = parameter(
        Flag(),
        "Answer from the cache of finished files, and keep the file there.",
        default_words="true with a `seed`; without one every picture is a new one",
        options=("--cache/--no-cache",),
        delivery=True,
    )

    @classmethod
    def parse(cls: type[AnySettings], given: Mapping[str, Any], card: Any) -> AnySettings:
        """Check and complete inputs against what a model can do.

        Args:
            given: values by name: text (or its UTF-8), numbers, booleans, pairs, `Picture`s, or what `to_json` writes; None and
                absent mean not given.
            card: of the model, the family's own.

        Raises:
            InvalidRequest: has all problems, each with field, what was given and what is legal.
        """
        return cls(**cls.read(given, card).result())

    @classmethod
    def read(cls, given: Mapping[str, Any], card: Any) -> Reading:
        """Check and complete inputs as `parse` does, as far as that can be done; raises nothing."""
        reading = Reading(cls, given, card)
        cls.complete(reading)
        return reading

    @classmethod
    def complete(cls, reading: Reading) -> None:
        """Decide what hangs on several inputs; families add theirs."""
        given, values = reading.given, reading.values
        values.setdefault("seed", None if "seed" in given else secrets.randbits(32))
        reading.default("use_cache", True)
        values["use_cache"] = bool(values.get("use_cache")) and "seed" in given
        own = cls.own_size(reading)
        for side in ("height", "width"):
            reading.default(side, own[side])
            reading.judge(side, lambda value, side=side: legal_side(side, value, cls.sides(reading.card, given)))

    @classmethod
    def own_size(cls, reading: Reading) -> dict[str, int]:
        """Give the height and width of a request that names none."""
        return {"height": reading.card.default_height, "width": reading.card.default_width}

    @classmethod
    @abstractmethod
    def sides(cls, card: Any, given: Mapping[str, Any]) -> Sequence[int]:
        """Give the legal heights and widths, in pixels, of a request that asks for what is `given`, in ascending order."""

    def to_json(self) -> dict[str, Any]:
        """Write the settings as a document that `parse` reads."""
        return {name: _document(value) for name, value in asdict(self).items()}


def _document(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return value._asdict()
    return [_document(one) for one in value] if isinstance(value, tuple) else value


class Reading:
    """A request while it is read: what was given, the values found legal so far, and the problems."""

    def __init__(self, settings: type[Settings], given: Mapping[str, Any], card: ModelCard) -> None:
        if not isinstance(given, Mapping):
            raise invalid("", f"a {type(given).__name__}", "inputs by name")
        self.card: Any = card
        self.given = {name: value for name, value in given.items() if value is not None}
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._narrowed: dict[str, Kind] = {}
        self._parameters = parameters(settings)
        for name in sorted(self.given.keys() - self._parameters.keys()):
            self.refuse(name, "an unknown input", ", ".join(self._parameters))
        for one in self._parameters.values():
            self._take(one)

    def _take(self, one: Parameter) -> None:
        if one.name in self.given:
            kind = self.kind(one.name)
            self.judge(one.name, lambda value: kind.check(one.name, kind.typed(one.name, value)), self.given[one.name])
            if one.needs and one.needs not in self.given:
                self.refuse(one.name, f"without {one.needs}", f"only together with {one.needs}")
        elif one.required:
            self.refuse(one.name, "nothing", "one text")
        elif isinstance(one.default, OfModel):
            self.values[one.name] = one.default.read(self.card)
        elif one.default is not None:
            self.values[one.name] = one.default

    def kind(self, name: str) -> Kind:
        """Give an input's kind with the limits that this model and the other inputs set."""
        return self._narrowed.get(name) or self._parameters[name].kind.of(self.card)

    def judge(self, name: str, check: Any, *value: Any) -> None:
        """Replace a value (of the input `name`, where none is given here) by what `check` makes of it, or note its problem."""
        if not value and name not in self.values:
            return  # a problem of its own already
        try:
            self.values[name] = check(*value or (self.values[name],))
        except InvalidRequest as error:
            self.values.pop(name, None)
            self.problems += [problem.cut for problem in error.problems]

    def narrow(self, name: str, kind: Kind) -> None:
        """Check a value against tighter limits, which hang on other inputs."""
        self._narrowed[name] = kind
        self.judge(name, lambda value: kind.check(name, value))

    def default(self, name: str, value: Any) -> None:
        """Fill in an input that was not given."""
        if name not in self.given:
            self.values[name] = value

    def refuse(self, field: str, given: object, legal: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(field, shown(given, str), legal).cut)

    def result(self) -> dict[str, Any]:
        """Give all values, those that were not asked for as None.

        Raises:
            InvalidRequest: has all problems, in the contract's order.
        """
        if self.problems:
            order = [*self._parameters]
            known = [problem for problem in dict.fromkeys(self.problems) if problem.field in order]
            known.sort(key=lambda problem: order.index(problem.field))
            raise InvalidRequest([*(problem for problem in self.problems if problem.field not in order), *known])
        return {name: self.values.get(name) for name in self._parameters}


def parameters(settings: type[Settings]) -> Mapping[str, Parameter]:
    """Give the parameters that a class of settings declares, by name, in its order."""
    return _parameters(cast(Any, settings))


@functools.cache
def _parameters(settings: Any) -> Mapping[str, Parameter]:
    declared = {field.name: field.metadata[PARAMETER] for field in fields(settings)}
    return {name: Parameter(name, kind, words, **more) for name, (kind, words, more) in declared.items()}


def legal_side(field: str, value: int, sides: Sequence[int]) -> int:
    """Give `value`, which is one of `sides`.

    Raises:
        InvalidRequest: it is not; names the nearest.
    """
    if value in sides:
        return value
    at = bisect(sides, value)
    nearest = " or ".join(map(str, sides[max(0, at - 1) : at + 1]))
    many = f"multiples of {sides.step}" if isinstance(sides, range) else f"{len(sides)} sizes"
    raise invalid(field, value, f"{many} from {sides[0]} to {sides[-1]}, the nearest {nearest}")


def tenant(value: Any) -> str:
    """Give a tenant's name; "" for none.

    Raises:
        InvalidRequest: too long, or no text.
    """
    return "" if value is None else TENANT.check("tenant", TENANT.typed("tenant", value))
