"""Seeds as text: a number box of a browser holds 53 bits, a seed has 63."""

from __future__ import annotations

import re
import secrets

from triptych.errors import invalid

MAX_SEED = 2**63 - 1
LEGAL = f"0 … {MAX_SEED}, or nothing for any"


def parse_seed(text: str | None) -> int | None:
    """The seed that somebody typed; None for an empty box.

    Raises:
        InvalidRequest: it is no whole number in 0 … 2⁶³−1.
    """
    typed = (text or "").strip()
    if not typed:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", typed) or int(typed) > MAX_SEED:
        raise invalid("seed", repr(typed[:40]), LEGAL)
    return int(typed)


def draw_seed() -> int:
    """Any seed of 32 bits: short enough to be read out, and all that torch's generator takes of one."""
    return secrets.randbits(32)


def seeds_from(first: int, n: int) -> list[int]:
    """seed, seed + 1, … as the client counts them.

    Raises:
        InvalidRequest: the last would be above 2⁶³−1.
    """
    if first + n - 1 > MAX_SEED:
        raise invalid("seed", f"{first} for {n} pictures", f"0 … {MAX_SEED - n + 1}")
    return list(range(first, first + n))
