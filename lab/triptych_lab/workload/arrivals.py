"""When requests arrive: endless streams of the seconds between two arrivals, at a mean rate, repeatable by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from triptych.errors import invalid

# The mean number of requests in a burst, and the mean share of the time in which there is a burst.
BURST_REQUESTS = 10.0
BURST_SHARE = 0.1

Arrivals = Callable[[float, random.Random], Iterator[float]]


def constant(rate: float, _choose: random.Random) -> Iterator[float]:
    """Yield the same interval for ever; `rate` in requests per second."""
    interval = 1 / _checked(rate)
    while True:
        yield interval


def poisson(rate: float, choose: random.Random) -> Iterator[float]:
    """Yield the exponential intervals of a Poisson process, as many independent users make; `rate` in requests per second."""
    _checked(rate)
    while True:
        yield choose.expovariate(rate)


def bursts(rate: float, choose: random.Random) -> Iterator[float]:
    """Yield the intervals of an interrupted Poisson process: bursts for a tenth of the time, else silence.

    `rate` is the mean in requests per second. Bursts and silences last exponentially long; a burst has ten requests in the
    mean. Kuczura, "The Interrupted Poisson Process As An Overflow Process", Bell System Technical Journal 52 (1973).
    """
    _checked(rate)
    busy = BURST_SHARE * BURST_REQUESTS / rate
    silent = (1 - BURST_SHARE) * BURST_REQUESTS / rate
    waited, left = 0.0, choose.expovariate(1 / busy)
    while True:
        interval = choose.expovariate(rate / BURST_SHARE)
        if interval <= left:
            yield waited + interval
            waited, left = 0.0, left - interval
        else:
            waited += left + choose.expovariate(1 / silent)
            left = choose.expovariate(1 / busy)


ARRIVALS: Mapping[str, Arrivals] = {"poisson": poisson, "bursts": bursts, "constant": constant}


def _checked(rate: float) -> float:
    if not 0 < rate < float("inf"):
        raise invalid("rate", rate, "requests per second, above 0")
    return rate
