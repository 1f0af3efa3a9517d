"""Requests and when they come: a file that a simulation and a real run read alike, and the makers of such files."""

from triptych_lab.workload.arrivals import ARRIVALS, Arrivals, bursts, constant, poisson
from triptych_lab.workload.files import Arrival, load, save
from triptych_lab.workload.mix import Mix, make

__all__ = ["ARRIVALS", "Arrival", "Arrivals", "Mix", "bursts", "constant", "load", "make", "poisson", "save"]
