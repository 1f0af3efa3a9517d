"""Run NVIDIA's perf_analyzer over the ensembles and their stages, with our requests and our report; its files are kept."""

from triptych_lab.bench.perf_analyzer.binary import find
from triptych_lab.bench.perf_analyzer.suite import Suite, run

__all__ = ["Suite", "find", "run"]
