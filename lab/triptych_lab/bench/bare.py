"""Call the stages of a picture one after another in this process: the least that it can cost with the same ONNX Runtime."""

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

# Rows of a guided picture: unconditional and conditional.
GUIDED = 2
# A program that loads the files in its arguments and prints the seconds that took, without those of importing the library.
_LOAD = """
import sys, time
from pathlib import Path
from triptych_serving.ort import session
began = time.monotonic()
sessions = [session(Path(name)) for name in sys.argv[1:]]
print(time.monotonic() - began)
"""


class BareSdxl:
    """Run SDXL's stages on inputs of the right shapes, with nothing in between: no sampling, no checks, no waiting.

    What is decoded here is noise, which takes longer to pack into a PNG than a picture; so `picture`, (height, width, 3) uint8,
    is packed in its place if it is given.
    """

    def __init__(self, build: Path, picture: NDArray[np.uint8] | None = None) -> None:
        self._picture, manifest = picture, Manifest.load(build)
        sizes = {**manifest.model.default_sizes, "batch": GUIDED}
        self._encoders = [_Call(manifest, name, sizes) for name in ("text_encoder", "text_encoder_2")]
        unet, inputs = OrtDenoiser(manifest.stage_path("unet")), manifest.stages["unet"]["inputs"]
        self._unet = partial(unet.predict, *example(inputs, sizes, GUIDED))
        self._decoder = _Call(manifest, "vae_decoder", {**sizes, "batch": 1})

    def draw(self, steps: int) -> bytes:
        """Make all calls of one guided picture at the model's own size; return a PNG file."""
        self.encode()
        for _ in range(steps):
            self._unet()
        return self.decode()

    def encode(self) -> None:
        """Make the calls that come before the steps."""
        for encoder in self._encoders:
            encoder()

    def decode(self) -> bytes:
        """Make the calls that come after the steps; return a PNG file."""
        decoded = self._decoder()["sample"][0]
        return encode(decoded if self._picture is None else self._picture, "png", {}, "")


class _Call:
    """A stage with the inputs that it is called with."""

    def __init__(self, manifest: Manifest, name: str, sizes: Mapping[str, int]) -> None:
        self._stage = OrtStage(manifest.stage_path(name))
        specs = manifest.stages[name]["inputs"]
        self._inputs = {tensor: _example(spec, sizes) for tensor, spec in specs.items()}

    def __call__(self) -> dict[str, NDArray[Any]]:
        return self._stage(self._inputs)


def _example(spec: Mapping[str, Any], sizes: Mapping[str, int]) -> NDArray[Any]:
    """Make an input of a stage: normal noise, or zeros for integers, which are token ids."""
    shape = [sizes.get(dim, dim) for dim in spec["shape"]]
    if spec["dtype"].startswith("int"):
        return np.zeros(shape, spec["dtype"])
    return np.random.default_rng(0).standard_normal(shape).astype(spec["dtype"])


def load_seconds(build: Path) -> float:
    """Measure the seconds in which a fresh process loads all ONNX files of a build, and does nothing else.

    Raises:
        BenchError: the process failed.
    """
    manifest = Manifest.load(build)
    files = [str(manifest.stage_path(name)) for name in manifest.stages]
    done = subprocess.run([sys.executable, "-c", _LOAD, *files], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise BenchError(f"loading {build} bare failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout)
