"""A build's graphs without their weights, a few MB that can be carried anywhere, and random weights to run them with.

python -m tests.gpu.graphs BUILD FOLDER
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx

from triptych_serving.manifest import Manifest

FACTS = "graphs.json"
POOL = 1 << 20  # random numbers, repeated: how long a product takes does not depend on them
SPREAD = 0.02


def thin(build: Path, folder: Path) -> None:
    """Write the graphs of a build's denoisers and decoders into `folder`, without weights."""
    manifest = Manifest.load(build)
    folder.mkdir(parents=True, exist_ok=True)
    stages = {}
    for name in [one for one in manifest.stages if one in manifest.model.denoisers or "decoder" in one]:
        onnx.save(onnx.load(manifest.stage_path(name), load_external_data=False), folder / f"{name}.onnx")
        stages[name] = {"inputs": manifest.stages[name]["inputs"], "denoises": name in manifest.model.denoisers}
    (folder / FACTS).write_text(json.dumps({"sizes": manifest.model.default_sizes, "stages": stages}))


def fill(folder: Path, stage: str, scratch: Path) -> Path:
    """Write a graph of `folder` with random weights, of the types that it has, to `scratch`; its path."""
    model, path = onnx.load(folder / f"{stage}.onnx", load_external_data=False), scratch / f"{stage}.onnx"
    pool, begin = np.random.default_rng(0).standard_normal(POOL) * SPREAD, 0
    with (scratch / f"{stage}.data").open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            count = math.prod(tensor.dims)
            data = np.resize(pool.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)), count).tobytes()
            file.write(data)
            del tensor.external_data[:]
            for key, value in {"location": file.name.rsplit("/", 1)[-1], "offset": begin, "length": len(data)}.items():
                tensor.external_data.add(key=key, value=str(value))
            begin += len(data)
    path.write_bytes(model.SerializeToString())
    return path


if __name__ == "__main__":
    thin(Path(sys.argv[1]), Path(sys.argv[2]))
