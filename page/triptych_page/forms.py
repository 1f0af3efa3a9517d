"""What the page asks for, model by model: the contract's parameters with the limits of the card that the server describes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from triptych.errors import InvalidRequest, ServerError, invalid
from triptych_contract.cards import CardError, ModelCard
from triptych_contract.control import Controls
from triptych_contract.families import FAMILIES
from triptych_contract.family import Family, Variant
from triptych_contract.listed import Listed
from triptych_contract.parameters import File, Files, Integers, LongInteger, Parameter, Picture
from triptych_contract.settings import Reading

from .seeds import parse_seed


def every(families: Mapping[str, Family]) -> Mapping[str, Parameter]:
    """Give all that forms may have. What families share stands where the last of them has it, whose stages are the most."""
    declared = (item for family in reversed([*families.values()]) for item in family.parameters.items())
    return {name: one for name, one in declared if not one.delivery}


EVERY = every(FAMILIES)
# Files of the page that a request starts from; the client sends their bytes.
PICTURES = tuple(name for name, one in EVERY.items() if isinstance(one.kind, File))
# The same, several at once.
STACKS = tuple(name for name, one in EVERY.items() if isinstance(one.kind, Files))
FILES = (*PICTURES, *STACKS)
# Lists of names with a weight each.
LISTS = tuple(name for name, one in EVERY.items() if isinstance(one.kind, Listed))
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
ANY_PICTURE = Picture("", 64, 64)
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Form:
    """One way to use one model, with all that may be asked of it."""

    ensemble: str
    family: Family
    card: ModelCard
    # One of the card's, and made anew with every look at it: no difference, or a server that comes back would reset the page.
    variant: Variant = field(compare=False)
    # What the server says of each of its adapters, None where it serves none. Files come and go while it runs.
    adapters: Mapping[str, Mapping[str, Any]] | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """The form's name among the server's."""
        return "+".join(filter(None, (self.ensemble, self.variant.key)))

    @property
    def title(self) -> str:
        """What people read."""
        own = " + ".join(filter(None, (self.ensemble, self.variant.key)))
        return self.variant.title if self.ensemble == self.family.name else own

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """The inputs that people may fill in, by name, with this model's limits and what the form begins with."""
        own = {"height": self.card.default_height, "width": self.card.default_width, **self.variant.defaults}
        declared = self.family.parameters.items()
        bound = {
            name: one.of(self.card) for name, one in declared if name in self.variant.parameters and not one.delivery
        }
        return {name: replace(one, default=own.get(name, one.default)) for name, one in bound.items()}

    @property
    def sides(self) -> Sequence[int]:
        """The legal heights and widths, in pixels."""
        return self.family.settings.sides(self.card, self.variant.defaults)

    @property
    def takes_pictures(self) -> bool:
        """Whether it can start from a picture."""
        return any(name in self.parameters for name in PICTURES)

    def listed(self, name: str) -> Mapping[str, str] | None:
        """Give what a list of names may name here, and words on each; None where this server has nothing for it."""
        if name not in self.parameters:
            return None
        if isinstance(self.parameters[name].kind, Controls):
            return dict.fromkeys(getattr(self.card, "controls", ()), "")
        if self.adapters is None:
            return None
        words = {one: facts.get("trigger_words") for one, facts in sorted(self.adapters.items())}
        return {one: f"Trigger words: {told}" if told else "" for one, told in words.items()}

    def stand_in(self, name: str, *also: str) -> Any:
        """Give what stands in for a setting that is left out, where there is what it is about, and the pictures `also`."""
        need = self.parameters[name].needs
        pictures = dict.fromkeys({need, *also}.intersection(PICTURES), ANY_PICTURE)
        given = {need: self.parameters[need].default} if need and need not in PICTURES else {}
        return self.read({**given, **pictures}).values.get(name)

    def read(self, values: Mapping[str, Any]) -> Reading:
        """Read what the page's fields hold, as far as it is legal: the values that stand in, the limits that others set."""
        return self.family.settings.read(self._given(values)[0], self.card)

    def check(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[InvalidRequest]]:
        """Give the request that `values` ask for, and all that is wrong with them, in the server's words.

        Args:
            values: what the page's fields hold, by the contract's names: seeds and pairs as text, pictures as the bytes of
                their files, of several perhaps the paths only. None, "" or [] is not given; what this form does not have is
                left out.
        """
        given, problems = self._given(values)
        try:
            settings = self.family.settings.parse(given, self.card)
        except InvalidRequest as error:
            return given, problems + [InvalidRequest([problem]) for problem in error.problems]
        checked = {name: values[name] if name in FILES else getattr(settings, name) for name in given}
        return checked, problems

    def _given(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[InvalidRequest]]:
        given: dict[str, Any] = {}
        problems = []
        for name, one in self.parameters.items():
            value = values.get(name)
            try:
                if value not in (None, []) and (value != "" or one.required):
                    given[name] = _meant(one, value)
            except InvalidRequest as problem:
                problems.append(problem)
        for name in [name for name in LISTS if name in given and len(given.get(self.parameters[name].needs, ())) == 1]:
            try:
                given[name] = [one._replace(image=0) for one in self.parameters[name].kind.typed(name, given[name])]
            except InvalidRequest as problem:
                problems.append(problem)
        # A number that the page keeps filled in means nothing without what it is about; pictures and names were put there.
        needs = {name: self.parameters[name].needs for name in given if name not in (*FILES, *LISTS)}
        return {name: value for name, value in given.items() if needs.get(name, "") in ("", *given)}, problems


def _meant(one: Parameter, value: Any) -> Any:
    """Give what somebody meant by the text or the file of a field; the rest is for the contract to judge."""
    if isinstance(one.kind, File) and isinstance(value, bytes):
        return _seen(one.name, value)
    if isinstance(one.kind, Files):
        return [_seen(one.name, file) if isinstance(file, bytes) else ANY_PICTURE for file in value]
    if isinstance(one.kind, LongInteger):
        return parse_seed(value, one.name)
    numbers = r"\d{1,9}(\s*,\s*\d{1,9}){1,3}"
    if isinstance(one.kind, Integers) and isinstance(value, str) and re.fullmatch(numbers, value):
        return tuple(map(int, value.split(",")))
    return value


def _seen(name: str, data: bytes) -> Picture:
    """Look at a picture's header for its size as people look at it; the server looks at the rest."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as image:
            # Pillow would decode all of a PNG to look for the rest of its header at the end.
            turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(ORIENTATION) in TURNED
            width, height = reversed(image.size) if turned else image.size
            return Picture("", height, width)
    except Exception:  # Pillow raises whatever it stumbles over
        raise invalid(name, "no readable picture", EVERY[name].kind.legal) from None


def forms_of(models: Mapping[str, Any]) -> dict[str, Form]:
    """Give the forms of a server, by key, from `AsyncClient.models()`; families that this version does not know are left out.

    Raises:
        ServerError: a card is another version's.
    """
    try:
        found = [form for name, described in models.items() for form in _forms(name, described)]
    except (AttributeError, CardError, KeyError, TypeError, ValueError) as error:
        raise ServerError(f"the answer is not this version's ({error!r})") from None
    return {form.key: form for form in found}


def _forms(ensemble: str, described: Mapping[str, Any]) -> Iterator[Form]:
    if family := FAMILIES.get(described["family"]):
        card = family.card.from_json(described["model"])
        adapters = described.get("adapters")
        yield from (Form(ensemble, family, card, variant, adapters) for variant in family.variants(card))
