"""What is wrong with a request, for callers and servers alike.

TriptychError              the root of what the client raises; its other branches are in `triptych.errors`
└── InvalidRequest         (ValueError) inputs are wrong; `problems` has all of them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

SHOWN_CHARACTERS = 60
TOLD_CHARACTERS = 300
# gRPC carries an error's text in a header of at most 8 KiB, where every character beyond ASCII takes nine bytes.
WIRE_CHARACTERS = 2_000


class Problem(NamedTuple):
    """One thing that is wrong: the field, what was given and what is legal. A field of "" means the request as a whole."""

    field: str
    given: str
    legal: str

    def __str__(self) -> str:
        return f"{self.field or 'request'}: {self.given} given; legal: {self.legal}"

    @property
    def cut(self) -> Problem:
        """The same with field and what was given cut to 60 characters, on one line: a stranger may have sent megabytes."""
        return self._replace(field=_short(self.field), given=_short(self.given))


def _short(text: str) -> str:
    plain = text if text.isprintable() else repr(text)
    return plain if len(plain) <= SHOWN_CHARACTERS else plain[: SHOWN_CHARACTERS - 1] + "…"


def shown(value: object, write: Callable[[object], str] = repr) -> str:
    """Write a value for an error, whatever it is."""
    try:
        return write(value)
    except (RecursionError, ValueError):  # lists in lists without end; whole numbers of thousands of digits
        return f"a {type(value).__name__} too large to show"


class TriptychError(Exception):
    """`request_id` is the id that the request was sent with, "" where none was."""

    def __init__(self, message: str, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class InvalidRequest(TriptychError, ValueError):
    """Inputs are wrong: a line each, `<field>: <what was given> given; legal: <range>`.

    Args:
        problems: all that is wrong; none where the server's words have no such form.
        message: words in place of the problems' own.
    """

    def __init__(self, problems: Iterable[Problem] = (), message: str = "", request_id: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__(message or "\n".join(map(str, self.problems)), request_id)

    @property
    def field(self) -> str:
        """The first wrong input's name, "" where none is named."""
        return self.problems[0].field if self.problems else ""


def invalid(field: str, given: object, legal: str) -> InvalidRequest:
    """Make the error of one wrong input. What was given is told up to 300 characters."""
    text = shown(given, str)
    return InvalidRequest(
        [Problem(field, text if len(text) <= TOLD_CHARACTERS else f"{text[:TOLD_CHARACTERS]}…", legal)]
    )


def with_facts(words: str, facts: Mapping[str, Any]) -> str:
    """Put what programs read behind what people read: one line of JSON, the last."""
    return f"{words}\n{json.dumps(facts)}"


def facts_of(message: str) -> tuple[str, Mapping[str, Any]]:
    """Take apart what `with_facts` put together; a message of another's has no facts."""
    words, _, tail = message.rpartition("\n")
    try:
        facts = json.loads(tail) if words and tail.startswith("{") else None
    except (RecursionError, ValueError):
        facts = None
    return (words, facts) if isinstance(facts, dict) else (message, {})


def to_wire(error: InvalidRequest) -> str:
    """Write an error as one text that Triton can carry: lines for people, then one line of JSON for programs."""
    kept = [problem.cut for problem in error.problems]
    while kept and len(text := _wire_text(error, kept)) > WIRE_CHARACTERS and len(kept) > 1:
        kept.pop()
    return text if kept else str(error)


def _wire_text(error: InvalidRequest, kept: list[Problem]) -> str:
    lines = [str(problem) for problem in kept]
    more = len(error.problems) - len(kept)
    words = "\n".join([*lines, *([f"and {more} more"] if more else [])])
    return with_facts(words, {"problems": [problem._asdict() for problem in kept]})


def from_wire(message: str, request_id: str = "") -> InvalidRequest:
    """Read what `to_wire` wrote; a message of Triton's own has no problems."""
    words, facts = facts_of(message)
    try:
        return InvalidRequest([_problem(**problem) for problem in facts["problems"]], words, request_id)
    except (KeyError, TypeError):
        return InvalidRequest((), message, request_id)


def _problem(**facts: object) -> Problem:
    if not all(isinstance(fact, str) for fact in facts.values()):
        raise TypeError("something else than text")
    return Problem(**facts)  # type: ignore[arg-type] # just checked
