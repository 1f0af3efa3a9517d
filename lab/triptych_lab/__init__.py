"""What measures and plans: benchmarks, the capacity simulator, workloads, checks of a machine."""
