"""What a request may ask for as options, made from the contract: a parameter that is declared there is an option here."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from triptych import request
from triptych.errors import InvalidRequest, Problem, invalid
from triptych_contract.adapters import Adapters, named
from triptych_contract.control import Controls
from triptych_contract.control import named as named_control
from triptych_contract.families import FAMILIES, family_of, stranger
from triptych_contract.family import Family
from triptych_contract.parameters import (
    GROUPS,
    Choice,
    File,
    Flag,
    Integer,
    Integers,
    Kind,
    Number,
    OfModel,
    Pair,
    Parameter,
    Side,
)

from .options import OUTPUT, spelled

# Parameters that a command asks for in its own way: as its argument, as `--timeout`, and with `--control`.
BESIDE = ("prompt", "deadline_ms", "control_images")
# NAME=PICTURE, then what the contract's short text has behind a name.
FOLLOWED = re.compile(r"(?P<name>[^=]+)=(?P<picture>.+?)(?P<more>(:[\d.]+(:[\d.]+-[\d.]+)?)?)")
# Height and width are asked for together.
SIZE, SIDES = "size", ("height", "width")


def with_parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Put the contract's options in the place of a command's argument `options`, which gets those that were given."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    made = [_option(name, owners) for name, owners in _declared().items()]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {one.name: values.pop(one.name) for one in made}
        command(**values, options={name: value for name, value in given.items() if value not in (None, [])})

    placed = [one for each in own for one in (made if each.name == "options" else [each])]
    keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in placed]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined] # what typer reads
    run.__annotations__ = {one.name: one.annotation for one in placed}
    return run


def asked(model: str, prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the parameters that a prompt and options ask `model` for, each in its own type.

    Raises:
        InvalidRequest: has all that is wrong.
    """
    legal = {_name(one): one for one in family_of(model).parameters.values() if one.name not in BESIDE}
    given: dict[str, Any] = {"prompt": prompt}
    problems: list[Problem] = []
    for name, value in options.items():
        try:
            if name not in legal:
                others = ", ".join(_spelled(other) for other, one in legal.items() if not one.delivery)
                raise invalid(_spelled(name), stranger("an option", name, model), others)
            given |= _parsed(legal[name], value)
        except InvalidRequest as error:
            problems += error.problems
    ready, unsendable = request.read(model, given)
    if problems or unsendable:
        raise InvalidRequest([*problems, *unsendable])
    return ready


def _name(one: Parameter) -> str:
    return SIZE if isinstance(one.kind, Side) else one.name


def _spelled(name: str) -> str:
    return f"--{spelled(name)}"


def _declared() -> Mapping[str, list[tuple[Family, Parameter]]]:
    """The parameters by the names of their options, as the families have them, group by group."""
    found: dict[str, list[tuple[Family, Parameter]]] = {}
    for family in FAMILIES.values():
        for one in family.parameters.values():
            owners = found.setdefault(_name(one), [])
            if one.name not in BESIDE and family not in [owner for owner, _ in owners]:
                owners.append((family, one))
    groups = [*GROUPS]
    known = {name: owners for name, owners in found.items() if owners}
    place = {name: owners[0][1].group for name, owners in known.items()}
    return dict(
        sorted(known.items(), key=lambda item: groups.index(place[item[0]]) if place[item[0]] in groups else 99)
    )


def _option(name: str, owners: list[tuple[Family, Parameter]]) -> inspect.Parameter:
    one = owners[0][1]
    kind, metavar = _typed(one.kind)
    own = f"{_spelled(name)}/--no-{spelled(name)}" if isinstance(one.kind, Flag) else _spelled(name)
    others = dict.fromkeys(option for _, each in owners for option in each.options)
    info = typer.Option(
        own, *others, metavar=metavar, help=_told(owners), rich_help_panel=_panel(one.group), show_default=False
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind | None, info])


def _panel(group: str) -> str:
    return OUTPUT if group in ("", "output") else GROUPS.get(group, group.capitalize())


def _told(owners: list[tuple[Family, Parameter]]) -> str:
    """The words of all families once, or each family's."""
    told = {family.title: _as_option(one).told for family, one in owners}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return " ".join(f"{title}: {words}" for title, words in told.items())


def _as_option(one: Parameter) -> Parameter:
    """The parameter in the words of its option."""
    if isinstance(one.kind, Side):
        return replace(one, words="Width and height in pixels.")
    if isinstance(one.kind, Adapters):
        return replace(one, words=f"{one.words[:-1]} (repeat).")
    if isinstance(one.kind, Controls):
        words = "A control (ControlNet) of the model and the picture that it follows; several add up (repeat)."
        return replace(one, words=words)
    if isinstance(one.kind, Pair) and one.kind.of_what == SIDES:
        return replace(one, kind=replace(one.kind, of_what=("width", "height")))
    return one


def _typed(kind: Kind) -> tuple[Any, str | None]:
    """The type of a kind's option, and what stands for its value."""
    match kind:
        case Flag():
            return bool, None
        case Side():
            return str, _form(SIDES)
        case Integers(of_what=of_what):
            return str, _form(of_what)
        case Integer():
            return int, None
        case Number():
            return float, None
        case File():
            return Path, "FILE"
        case Adapters():
            return list[str], "NAME[:SCALE]"
        case Controls():
            return list[str], "NAME=FILE[:SCALE[:START-END]]"
        case Choice(names=names) if not isinstance(names, OfModel) and not kind.aliases:
            return Literal[tuple(names)], None
    return str, None


def _form(of_what: tuple[str, ...]) -> str:
    return "WxH" if of_what == SIDES else ",".join(of_what).upper()


def _parsed(one: Parameter, value: Any) -> dict[str, Any]:
    if isinstance(one.kind, Side):
        return dict(zip(SIDES, _several(SIZE, SIDES, value), strict=True))
    if isinstance(one.kind, Adapters):
        return {one.name: [named(one.name, text) for text in value]}
    if isinstance(one.kind, Controls):
        controls, pictures = zip(*(_followed(one.name, text) for text in value), strict=True)
        return {one.name: controls, one.needs: pictures}
    return {one.name: _several(one.name, one.kind.of_what, value) if isinstance(one.kind, Integers) else value}


def _followed(name: str, text: str) -> tuple[Mapping[str, Any], Path]:
    """A control, and the picture that it follows."""
    found = FOLLOWED.fullmatch(text)
    if not found:
        raise invalid(name, repr(text), "NAME=FILE, NAME=FILE:0.8 or NAME=FILE:0.8:0-0.5")
    return named_control(name, f"{found['name']}{found['more']}"), Path(found["picture"])


def _several(name: str, of_what: tuple[str, ...], text: str) -> tuple[int, ...]:
    """Several numbers as the contract has them; of a size people write the width first."""
    if of_what == SIDES:
        if found := re.fullmatch(r"(\d{1,9})[x×](\d{1,9})", text):
            return int(found[2]), int(found[1])
        raise invalid(name, repr(text), "WIDTHxHEIGHT in pixels, as 128x96")
    parts = text.split(",")
    if len(parts) == len(of_what) and all(re.fullmatch(r" ?\d{1,9}", part) for part in parts):
        return tuple(map(int, parts))
    example = ",".join(str(64 * (k % 2)) for k in range(len(of_what)))
    raise invalid(name, repr(text), f"{_form(of_what)} in pixels, as {example}")
