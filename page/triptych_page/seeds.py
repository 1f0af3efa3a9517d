"""Seeds as text: a number box of a browser holds 53 bits, a seed has 63. And how many pictures, each with one of its own."""

from __future__ import annotations

import re
import secrets
from typing import Any

from triptych.errors import invalid
from triptych_contract.parameters import MAX_INT64 as MAX_SEED
from triptych_contract.parameters import Integer

LEGAL = f"0 … {MAX_SEED}, or nothing for any"
MAX_IMAGES = 16


def parse_seed(text: Any, field: str = "seed") -> int | None:
    """Give the seed that somebody typed; None for an empty box.

    Raises:
        InvalidRequest: it is no whole number in 0 … 2⁶³−1.
    """
    typed = "" if text is None else str(text).strip()
    if not typed:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", typed) or int(typed) > MAX_SEED:
        raise invalid(field, repr(typed[:40]), LEGAL)
    return int(typed)


def draw_seed() -> int:
    """Draw any seed of 32 bits: short enough to be read out, and all that torch's generator takes of one."""
    return secrets.randbits(32)


def check_count(n: Any, seed: int | None) -> int:
    """Give how many pictures to make.

    Raises:
        InvalidRequest: not a whole number in 1 … 16, or more than there are seeds left.
    """
    whole = Integer(1, MAX_IMAGES)
    count = whole.check("n", whole.typed("n", n))
    seeds_from(seed or 0, count)
    return count


def seeds_from(first: int, n: int) -> list[int]:
    """Give seed, seed + 1, … as the client counts them.

    Raises:
        InvalidRequest: the last would be above 2⁶³−1.
    """
    if first + n - 1 > MAX_SEED:
        raise invalid("seed", f"{first} for {n} pictures", f"0 … {MAX_SEED - n + 1}")
    return list(range(first, first + n))
