"""What the page asks for, model by model: read from the server's `describe`, so that it shows what that server takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from triptych.errors import ServerError

from .sizes import cascade_sides, sdxl_sides

# The contract's own limits, the same for every model.
MAX_GUIDANCE_SCALE, MAX_AESTHETIC_SCORE = 50.0, 10.0
MAX_PROMPT_BYTES = 16_384
FORMATS = ("png", "jpeg", "webp")
# Where diffusers' own examples hand over to the refiner.
DENOISING_END = 0.8


@dataclass(frozen=True)
class Number:
    """A number in `low` … `high`, or between them where `between`. A `default` of None is not sent unless given."""

    name: str
    low: float
    high: float
    default: float | None
    whole: bool = False
    between: bool = False

    @property
    def step(self) -> float:
        """What one press of an arrow key changes."""
        if self.whole:
            return 1
        return 0.05 if self.high <= 1 else 0.1

    @property
    def legal(self) -> str:
        """The range in the server's words."""
        if self.between:
            return f"over {self.low:g}, under {self.high:g}"
        return f"{self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class Schedule:
    """One schedule of a sampler: its most steps, and whether it can paint behind a mask."""

    max_steps: int
    inpaint: bool


@dataclass(frozen=True)
class Sampler:
    """A sampler: the names that other tools have for it, and its schedules."""

    a1111: str
    diffusers: str
    schedules: Mapping[str, Schedule]


@dataclass(frozen=True)
class Form:
    """What may be asked of one model. `sides` are legal heights and widths, `width` and `height` its own, in pixels."""

    key: str
    title: str
    ensemble: str
    model: str
    numbers: Mapping[str, Number]
    sides: tuple[int, ...]
    width: int
    height: int
    samplers: Mapping[str, Sampler] = field(default_factory=dict)
    sampler: str = ""
    schedule: str = ""
    takes_pictures: bool = False
    refined: bool = False

    def max_steps(self, sampler: str | None, schedule: str | None) -> int:
        """The most `num_inference_steps` that a sampler and schedule have; the form's own limit where it has none."""
        schedules = self.samplers[sampler or self.sampler].schedules if self.samplers else {}
        name = self.schedule_of(sampler, schedule)
        return schedules[name].max_steps if name in schedules else int(self.numbers["num_inference_steps"].high)

    def schedule_of(self, sampler: str | None, schedule: str | None) -> str:
        """The schedule that a request gets which names this sampler and perhaps none."""
        if schedule or not self.samplers:
            return schedule or ""
        schedules = self.samplers[sampler or self.sampler].schedules
        return self.schedule if self.schedule in schedules else next(iter(schedules))

    def names(self) -> set[str]:
        """The inputs that this form can fill in."""
        common = {"prompt", "negative_prompt", "seed", "height", "width", "output_format", *self.numbers}
        common |= {"sampler", "schedule"} if self.samplers else set()
        return common | ({"init_image", "mask", "strength"} if self.takes_pictures else set())


def forms_of(models: Mapping[str, Any]) -> dict[str, Form]:
    """The forms of a server, by key, from `AsyncClient.models()`; families that this version does not know are left out.

    Raises:
        ServerError: a card is another version's.
    """
    try:
        found = [form for name, described in models.items() for form in _forms(name, described)]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ServerError(f"the answer is not this version's ({error!r})") from None
    return {form.key: form for form in found}


def _forms(ensemble: str, described: Mapping[str, Any]) -> Iterator[Form]:
    card, family = described["model"], described["family"]
    if family == "sdxl":
        yield _sdxl(ensemble, card)
        if card["refiner"]:
            yield _refined(ensemble, card)
    elif family == "stable_cascade":
        yield _cascade(ensemble, card)


def _sdxl(ensemble: str, card: Mapping[str, Any], **changes: Any) -> Form:
    samplers = {name: _sampler(sampler) for name, sampler in card["samplers"].items()}
    most = max(schedule.max_steps for sampler in samplers.values() for schedule in sampler.schedules.values())
    numbers = (
        Number("num_inference_steps", 1, most, card["default_num_inference_steps"], whole=True),
        Number("guidance_scale", 0, MAX_GUIDANCE_SCALE, card["default_guidance_scale"]),
        Number("guidance_rescale", 0, 1, 0),
        Number("guidance_end", 0, 1, 1),
        Number("clip_skip", 0, card["max_clip_skip"], 0, whole=True),
        Number("strength", 0, 1, None),
        *changes.pop("numbers", ()),
    )
    facts = {
        "key": ensemble,
        "title": "SDXL" if ensemble == "sdxl" else ensemble,
        "sides": sdxl_sides(card),
        **changes,
    }
    return Form(
        ensemble=ensemble,
        model=card["name"],
        numbers={number.name: number for number in numbers},
        width=card["default_width"],
        height=card["default_height"],
        samplers=samplers,
        sampler=card["default_sampler"],
        schedule=card["default_schedule"],
        takes_pictures=True,
        **facts,
    )


def _sampler(card: Mapping[str, Any]) -> Sampler:
    tables = card["schedules"].items()
    schedules = {name: Schedule(int(table["max_steps"]), bool(table["inpaint"])) for name, table in tables}
    return Sampler(card["a1111"], card["diffusers"], schedules)


def _refined(ensemble: str, card: Mapping[str, Any]) -> Form:
    numbers = (
        Number("denoising_end", 0, 1, DENOISING_END, between=True),
        Number("aesthetic_score", 0, MAX_AESTHETIC_SCORE, 6.0),
        Number("negative_aesthetic_score", 0, MAX_AESTHETIC_SCORE, 2.5),
    )
    return _sdxl(
        ensemble,
        card,
        key=f"{ensemble}+refiner",
        title="SDXL + refiner" if ensemble == "sdxl" else f"{ensemble} + refiner",
        sides=sdxl_sides(card, card["refiner"]["size_multiple"]),
        numbers=numbers,
        refined=True,
    )


def _cascade(ensemble: str, card: Mapping[str, Any]) -> Form:
    prior, decoder = card["prior_table"]["max_steps"], card["decoder_table"]["max_steps"]
    numbers = (
        Number("prior_num_inference_steps", 1, prior, card["default_prior_num_inference_steps"], whole=True),
        Number("prior_guidance_scale", 0, MAX_GUIDANCE_SCALE, card["default_prior_guidance_scale"]),
        Number("num_inference_steps", 1, decoder, card["default_num_inference_steps"], whole=True),
        Number("decoder_guidance_scale", 0, MAX_GUIDANCE_SCALE, card["default_decoder_guidance_scale"]),
    )
    return Form(
        key=ensemble,
        title="Stable Cascade" if ensemble == "stable_cascade" else ensemble,
        ensemble=ensemble,
        model=card["name"],
        numbers={number.name: number for number in numbers},
        sides=cascade_sides(card),
        width=card["default_width"],
        height=card["default_height"],
    )
