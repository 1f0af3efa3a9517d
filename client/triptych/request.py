"""A request's inputs as they can be sent. What is legal, the contract says, and the server's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych_contract.errors import InvalidRequest, Problem, invalid
from triptych_contract.families import family_of, stranger
from triptych_contract.parameters import File, Parameter

from .pictures import file_bytes


def check(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the inputs that were given (None is not given), each in its own type.

    Raises:
        InvalidRequest: names that `model` does not have, values that their types cannot hold, files that cannot be read.
    """
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
    if problems:
        raise InvalidRequest(problems)
    return ready


def _sendable(one: Parameter, value: Any) -> Any:
    return file_bytes(one.name, value) if isinstance(one.kind, File) else one.kind.typed(one.name, value)
