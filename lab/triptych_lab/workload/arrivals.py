"""When requests come: endless streams of seconds between one arrival and the next, at a mean rate, repeatable by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from triptych.errors import invalid

# A burst's mean number of requests, and the share of the time between bursts' starts that a burst lasts.
BURST_REQUESTS = 10.0
BURST_SHARE = 0.1

Arrivals = Callable[[float, random.Random], Iterator[float]]


def constant(rate: float, _choose: random.Random) -> Iterator[float]:
    """The same interval always; `rate` in requests per second."""
    interval = 1 / _checked(rate)
    while True:
        yield interval


def poisson(rate: float, choose: random.Random) -> Iterator[float]:
    """A Poisson process: exponential intervals; `rate` in requests per second. What many independent users make."""
    _checked(rate)
    while True:
        yield choose.expovariate(rate)


def bursts(rate: float, choose: random.Random) -> Iterator[float]:
    """An interrupted Poisson process of the mean `rate` (requests per second): busy for a tenth of the time, else silent.

    Busy and silent periods are exponential, and a busy one has ten requests in the mean. Kuczura, "The Interrupted Poisson
    Process As An Overflow Process", Bell System Technical Journal 52 (1973).
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
