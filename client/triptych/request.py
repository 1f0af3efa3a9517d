"""A request's inputs as they can be sent. What is legal, the contract says, and the server's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych_contract.cards import ModelCard
from triptych_contract.errors import InvalidRequest, Problem, invalid
from triptych_contract.families import family_of, stranger
from triptych_contract.parameters import File, Files, Parameter
from triptych_contract.settings import Settings

from .pictures import file_bytes, files_bytes, header


def check(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the inputs that were given (None is not given), each in its own type.

    Raises:
        InvalidRequest: names that `model` does not have, values that their types cannot hold, files that cannot be read.
    """
    ready, problems = read(model, given)
    if problems:
        raise InvalidRequest(problems)
    return ready


def judge(model: str, given: Mapping[str, Any], settings: type[Settings], card: ModelCard) -> None:
    """Check the inputs as `check` does, and against what a model can do.

    Raises:
        InvalidRequest: has all problems, each field's first.
    """
    ready, problems = read(model, given)
    legal = family_of(model).parameters
    for name in [name for name in ready if isinstance(legal[name].kind, (File, Files))]:
        files = ready[name] if isinstance(legal[name].kind, Files) else [ready[name]]
        try:
            seen = [header(name, file) for file in files]
            ready[name] = seen if isinstance(legal[name].kind, Files) else seen[0]
        except InvalidRequest as error:
            problems += error.problems
            del ready[name]
    try:
        settings.parse(ready, card)
    except InvalidRequest as error:
        told = {problem.field for problem in problems}  # it was not shown those, nor knows what hangs on them
        hangs = told | {name for name, one in legal.items() if one.needs in told}
        problems += [problem for problem in error.problems if problem.field not in hangs]
    if problems:
        raise InvalidRequest(problems)


def read(model: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Give what `check` gives, and what it would raise."""
    legal = family_of(model).parameters
    ready: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in given.items():
        try:
            if name not in legal:
                raise invalid(name, stranger("a parameter", name, model), ", ".join(legal))
            if value is not None:
                ready[name] = _sendable(legal[name], value)
        except InvalidRequest as error:
            problems += error.problems
    return ready, problems


def _sendable(one: Parameter, value: Any) -> Any:
    if isinstance(one.kind, File):
        return file_bytes(one.name, value)
    if isinstance(one.kind, Files):
        return files_bytes(one.name, value)
    return one.kind.sent(one.kind.typed(one.name, value))
