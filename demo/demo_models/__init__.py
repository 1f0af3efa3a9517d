"""Trains Triptych's demo models: a small SDXL, its refiner and a small Stable Cascade, from MIT-licensed emoji."""
