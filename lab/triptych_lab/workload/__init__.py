"""Workloads, requests with their times of arrival: files that simulations and real runs read, and how to make them."""

from triptych_lab.workload.arrivals import ARRIVALS, Arrivals, bursts, constant, poisson
from triptych_lab.workload.files import Arrival, load, save
from triptych_lab.workload.mix import Mix, make

__all__ = ["ARRIVALS", "Arrival", "Arrivals", "Mix", "bursts", "constant", "load", "make", "poisson", "save"]
