"""Whether a denoiser's rows have the same bytes in every batch: the promise behind "the same request, the same image"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .adapters.mix import INPUTS as ADAPTERS
from .denoiser import Conditioning, Denoiser, Floats
from .manifest import TIMESTEPS


def example(
    inputs: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], rows: int
) -> tuple[Floats, Floats, list[Conditioning]]:
    """Random latents, timesteps and conditioning of `rows` rows for a stage with these tensor specs; always the same."""
    random = np.random.default_rng(0)
    sizes = {**sizes, "batch": rows}
    shapes = {name: [sizes.get(dim, dim) for dim in spec["shape"]] for name, spec in inputs.items()}
    arrays = {
        # Adapters as small as they are, since their products add up over all channels.
        name: np.asarray(random.standard_normal(shape) * (0.05 if name in ADAPTERS else 1), np.float32)
        for name, shape in shapes.items()
    }
    sample = arrays.pop("sample")
    (name,) = arrays.keys() & set(TIMESTEPS)
    one_for_all = not arrays.pop(name).shape
    timestep = np.full(rows, 0.5, np.float32) if one_for_all else np.linspace(0, 1, rows + 2, dtype=np.float32)[1:-1]
    timestep *= {"timestep": 1000, "timestep_ratio": 1}[name]
    conditioning = [Conditioning({name: array[k : k + 1] for name, array in arrays.items()}) for k in range(rows)]
    return sample, timestep, conditioning


def verify(
    denoiser: Denoiser, inputs: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], max_rows: int
) -> dict[str, Any]:
    """Run the same rows alone, in batches of every size up to `max_rows`, and in reverse; compare the bytes."""
    sample, timestep, conditioning = example(inputs, sizes, max_rows)
    whole = denoiser.predict(sample, timestep, conditioning)
    batches = [*range(1, min(max_rows, 8) + 1), *([max_rows] if max_rows > 8 else [])]
    equal = True
    for batch in batches:
        last = slice(max_rows - batch, max_rows)
        equal &= np.array_equal(denoiser.predict(sample[last], timestep[last], conditioning[last]), whole[last])
    backwards = denoiser.predict(sample[::-1].copy(), timestep[::-1].copy(), conditioning[::-1])
    for one in conditioning:
        denoiser.release(one)
    return {"batch_invariant": bool(equal and np.array_equal(backwards[::-1], whole)), "batches": batches}
