"""Prompts as A1111 reads them: (more), [less], (word:1.3), a bracket that is only one behind a backslash, and BREAK."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .errors import invalid

# A1111 has no limit; far below this one nothing of a picture is left.
MAX_WEIGHT = 10.0
MORE, LESS = 1.1, 1 / 1.1

_TOKEN = re.compile(
    r"""
      \\(?P<escaped>[\\()\[\]]?)  # before anything else a backslash is dropped
    | :\s*(?P<weight>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*(?P<closing>[)\]])
    | (?P<bracket>[()\[\]])
    | (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class Part(NamedTuple):
    """A text, and what the model's view of each of its tokens is multiplied by."""

    text: str
    weight: float


def sections(field: str, prompt: str) -> list[list[Part]]:
    """Read a prompt: the parts between one BREAK and the next; neighbours have different weights. Takes linear time.

    Args:
        field: the input that it is, for errors.

    Raises:
        InvalidRequest: a weight is beyond the limit, or words are to change from step to step ([from:to:when], [one|other]).
    """
    brackets = _Brackets()
    texts: list[tuple[str | None, int, int]] = []
    for token in _TOKEN.finditer(prompt):
        if not brackets.takes(field, token):
            texts += [(text, brackets.innermost["("], brackets.innermost["["]) for text in _texts(token)]
    factors = brackets.factors()
    read: list[list[Part]] = [[]]
    for text, one, other in texts:
        if text is None:
            read.append([])
        else:
            read[-1].append(Part(text, factors[one] * factors[other]))
    for part in itertools.chain.from_iterable(read):
        if abs(part.weight) > MAX_WEIGHT:
            raise invalid(field, f"weight {part.weight:.4g} of {part.text!r}", f"-{MAX_WEIGHT:g} … {MAX_WEIGHT:g}")
    return [_merged(section) for section in read]


def _texts(token: re.Match[str]) -> Iterator[str | None]:
    """The texts of a token, None for each BREAK between them."""
    if token["escaped"] is not None:
        yield token["escaped"]
        return
    first, *others = _BREAK.split(token[0])
    yield first
    for text in others:
        yield from (None, text)


def _merged(parts: Iterable[Part]) -> list[Part]:
    """Neighbours of one weight as one part: how words are read hangs on what is beside them."""
    same = itertools.groupby((part for part in parts if part.text), key=lambda part: part.weight)
    return [Part("".join(part.text for part in group), weight) for weight, group in same]


class _Brackets:
    """The brackets of a prompt, round and square ones apart from each other, as A1111 pairs them."""

    def __init__(self) -> None:
        self.innermost = {"(": 0, "[": 0}  # of those that are open, by shape; 0 for none
        self._around, self._factor = [0], [1.0]

    def takes(self, field: str, token: re.Match[str]) -> bool:
        """Whether a token opens or closes a bracket; else it is text.

        Raises:
            InvalidRequest: it belongs to words that change from step to step.
        """
        closing = token["closing"] or token["bracket"]
        square = self.innermost["["]
        if square and (token["closing"] == "]" or "|" in (token["text"] or "")):
            legal = "weights only; A1111's [from:to:when] and [one|other], other words at other steps, are not drawn"
            raise invalid(field, f"{token[0]!r} in [ ]", legal)
        if closing in ("(", "["):
            self._around.append(self.innermost[closing])
            self._factor.append(MORE if closing == "(" else LESS)
            self.innermost[closing] = len(self._factor) - 1
            return True
        shape = {")": "(", "]": "["}.get(closing or "", "")
        if not shape or not self.innermost[shape]:
            return False
        closed = self.innermost[shape]
        if token["weight"]:
            self._factor[closed] = float(token["weight"])
        self.innermost[shape] = self._around[closed]
        return True

    def factors(self) -> list[float]:
        """What the content of each bracket is multiplied by, by it and those around it; those left open count as closed."""
        whole = [1.0]
        for around, factor in zip(self._around[1:], self._factor[1:], strict=True):
            whole.append(whole[around] * factor)
        return whole
