"""Measure and plan: benchmarks, the capacity simulator, workloads, checks of a machine."""
