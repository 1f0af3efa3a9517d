"""The stages of a picture called one after another in this process: what it costs at least, with the same ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych_serving.images import encode
from triptych_serving.invariance import example
from triptych_serving.manifest import Manifest
from triptych_serving.ort import OrtDenoiser, OrtStage

from .errors import BenchError

# Rows with guidance on: the unconditional and the conditional.
GUIDED = 2
# Loads the files that are its arguments, and says how long that took; importing the library is not part of it.
_LOAD = """
import sys, time
from pathlib import Path
from triptych_serving.ort import session
began = time.monotonic()
sessions = [session(Path(name)) for name in sys.argv[1:]]
print(time.monotonic() - began)
"""


class BareSdxl:
    """SDXL's stages on inputs of the right shapes. Nothing is sampled, checked or waited for between them.

    The file is of `picture`, [height, width, 3], where one is given: the noise that is decoded here takes other time to pack.
    """

    def __init__(self, build: Path, picture: NDArray[np.uint8] | None = None) -> None:
        self._picture, manifest = picture, Manifest.load(build)
        sizes = {**manifest.model.default_sizes, "batch": GUIDED}
        self._encoders = [_Call(manifest, name, sizes) for name in ("text_encoder", "text_encoder_2")]
        unet, inputs = OrtDenoiser(manifest.stage_path("unet")), manifest.stages["unet"]["inputs"]
        self._unet = partial(unet.predict, *example(inputs, sizes, GUIDED))
        self._decoder = _Call(manifest, "vae_decoder", {**sizes, "batch": 1})

    def draw(self, steps: int) -> bytes:
        """The calls of one guided picture of the model's own size; returns a PNG."""
        self.encode()
        for _ in range(steps):
            self._unet()
        return self.decode()

    def encode(self) -> None:
        """What comes before the steps."""
        for encoder in self._encoders:
            encoder()

    def decode(self) -> bytes:
        """What comes after them."""
        decoded = self._decoder()["sample"][0]
        return encode(decoded if self._picture is None else self._picture, "png", {}, "")


class _Call:
    """A stage with what it is called on."""

    def __init__(self, manifest: Manifest, name: str, sizes: Mapping[str, int]) -> None:
        self._stage = OrtStage(manifest.stage_path(name))
        specs = manifest.stages[name]["inputs"]
        self._inputs = {tensor: _example(spec, sizes) for tensor, spec in specs.items()}

    def __call__(self) -> dict[str, NDArray[Any]]:
        return self._stage(self._inputs)


def _example(spec: Mapping[str, Any], sizes: Mapping[str, int]) -> NDArray[Any]:
    """Normal noise, or zeros where indices are wanted."""
    shape = [sizes.get(dim, dim) for dim in spec["shape"]]
    if spec["dtype"].startswith("int"):
        return np.zeros(shape, spec["dtype"])
    return np.random.default_rng(0).standard_normal(shape).astype(spec["dtype"])


def load_seconds(build: Path) -> float:
    """Seconds in which a fresh process loads all ONNX files of a build, and nothing else.

    Raises:
        BenchError: it does not.
    """
    manifest = Manifest.load(build)
    files = [str(manifest.stage_path(name)) for name in manifest.stages]
    done = subprocess.run([sys.executable, "-c", _LOAD, *files], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise BenchError(f"loading {build} bare failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout)
