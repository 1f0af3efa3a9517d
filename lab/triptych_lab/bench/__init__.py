"""Measurements against what people would otherwise use, side by side in one run."""
