"""Run stages on ONNX Runtime's CUDA provider: any NVIDIA GPU that it knows, without engines.

What runs a graph, and the device whose memory it works in, is an argument: the tests have the CPU's. Never run on a GPU yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .denoiser import Conditioning, Floats, calls, only, padded
from .manifest import TIMESTEPS
from .ort import OrtStage, Provider, session, types
from .tensorrt.cuda import STICKY
from .tensorrt.device import DeviceLost, Shape
from .tensorrt.library import CUDA as CUDA_RUNTIME
from .tensorrt.library import CUDA_HINT, CUDA_PROVIDER, LibraryMissing, imported
from .tensorrt.lost import ends_the_process_if_lost

CUDA = Provider(
    CUDA_PROVIDER,
    "cuda",
    {
        "device_id": "0",  # CUDA_VISIBLE_DEVICES decides which one that is
        "arena_extend_strategy": "kSameAsRequested",  # by default it asks for powers of two, and several processes share the GPU
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries all for each new shape, and may choose others next time
    },
)
GRAPHS = {"enable_cuda_graph": "1"}
NO_GRAPH = "-1"  # as `gpu_graph_id`: run without capturing
# Batches of other sizes than the model's own whose memory on the device is kept, those that were used last.
OTHER_SIZES = 8

log = logging.getLogger(__name__)


class CudaStage(OrtStage):
    """An encoder or decoder: arrays in and arrays out, by name."""

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        wanted = types(self._session)
        given = {name: array.astype(wanted[name], copy=False) for name, array in inputs.items()}
        with ends_the_process_if_lost(), _lost_is_told():
            return super().__call__(given)


class CudaDenoiser:
    """`Denoiser` whose inputs and output lie on the device, at fixed addresses for each shape of a batch.

    Conditioning is uploaded when a batch of that shape has other members than the last one had; a step moves latents and
    timesteps. Batches of the model's own size are CUDA graphs, captured when there is the first one of so many rows.

    The bytes of a row may depend on how many rows it is run with. With `fixed_rows` every call has that many rows, padded if
    there are fewer; the rows of one request are never split over two calls.

    Args:
        inputs: the stage's inputs as the manifest has them.
        sizes: the named dimensions at the model's own size.
        most_rows: the most rows that the loop puts into a batch.
    """

    def __init__(
        self,
        path: Path,
        inputs: Mapping[str, Mapping[str, Any]],
        sizes: Mapping[str, int],
        *,
        most_rows: int,
        fixed_rows: int | None = None,
        provider: Provider = CUDA,
    ) -> None:
        self._session, self.graphs = _session(path, provider, reproducible=fixed_rows is not None)
        self._device, self._fixed, self._most_rows = provider.device, fixed_rows, fixed_rows or most_rows
        self._own = {name: tuple(sizes.get(dim, dim) for dim in spec["shape"][1:]) for name, spec in inputs.items()}
        (self._timestep,) = (name for name in inputs if name in TIMESTEPS)
        self._one_timestep = not inputs[self._timestep]["shape"]
        self._conditions = [name for name in inputs if name not in ("sample", self._timestep)]
        self._batches: dict[tuple[int, tuple[Shape, ...]], _Batch] = {}
        # ONNX Runtime keeps a graph for the thread that captured it.
        self._thread = ThreadPoolExecutor(1, "cuda")

    def predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        return self._thread.submit(self._predict, sample, timestep, conditioning).result()

    def release(self, conditioning: Conditioning) -> None:
        for batch in self._batches.values():
            if conditioning in batch.members:
                batch.members = ()

    def _predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        noise_pred = np.empty_like(sample)
        with ends_the_process_if_lost(), _lost_is_told():
            for rows, members in calls(conditioning, self._most_rows):
                noise_pred[rows] = self._call(sample[rows], timestep[rows], members)
        return noise_pred

    def _call(self, sample: Floats, timestep: Floats, members: tuple[Conditioning, ...]) -> Floats:
        """Run one batch; the result is overwritten by the next."""
        rows = self._fixed or len(sample)
        batch = self._batch(rows, {name: members[0].shape(name) for name in self._conditions}, sample)
        batch.put("sample", padded(sample, rows))
        batch.put(self._timestep, only(timestep) if self._one_timestep else padded(timestep, rows))
        if batch.members != members:
            batch.members = ()  # a failure below would leave the inputs half written
            for name in self._conditions:
                batch.put(name, padded(np.concatenate([one[name] for one in members]), rows))
            batch.members = members
        return batch.run(self._session)[: len(sample)]

    def _batch(self, rows: int, tails: Mapping[str, Shape], sample: Floats) -> _Batch:
        """Return the memory of a batch of this shape; the tails are shapes without the rows."""
        tails = {**tails, "sample": sample.shape[1:], self._timestep: ()}
        key = rows, tuple(tails[name] for name in self._own)
        if key not in self._batches:
            is_own = tails == self._own
            if not is_own:
                self._forget_the_oldest()
            shapes = {name: (rows, *tail) for name, tail in tails.items()}
            if self._one_timestep:
                shapes[self._timestep] = ()
            graph = str(rows) if is_own and self.graphs else NO_GRAPH
            self._batches[key] = _Batch(self._session, shapes, self._device, graph)
        batch = self._batches[key] = self._batches.pop(key)  # the newest is the last
        return batch

    def _forget_the_oldest(self) -> None:
        """Make room for one more of another size. Those with a graph stay: it has their addresses."""
        others = [key for key in self._batches if key[1] != tuple(self._own.values())]
        if len(others) == OTHER_SIZES:
            del self._batches[others[0]]


class _Batch:
    """The inputs and the output of batches of one shape, on the device; `members` are those whose conditioning is there."""

    def __init__(self, runs: ort.InferenceSession, shapes: Mapping[str, Shape], device: str, graph: str) -> None:
        self.members: tuple[Conditioning, ...] = ()
        self._types = types(runs)
        self._inputs = {name: _memory(shape, device, self._types[name]) for name, shape in shapes.items()}
        self._output = _memory(shapes["sample"], device)
        self._binding = runs.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output("out_sample", self._output)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", graph)

    def put(self, name: str, array: Floats) -> None:
        """Upload an input of the next run; the copy is made when this returns."""
        self._inputs[name].update_inplace(np.ascontiguousarray(array, self._types[name]))

    def run(self, session: ort.InferenceSession) -> Floats:
        """Run, and return all rows of the output."""
        session.run_with_iobinding(self._binding, self._options)
        return np.asarray(self._output.numpy())


def _memory(shape: Shape, device: str, dtype: Any = np.float32) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)


def _session(path: Path, provider: Provider, *, reproducible: bool) -> tuple[ort.InferenceSession, bool]:
    """Load a graph so that its runs can be captured, or without that where ONNX Runtime refuses; whether they can be."""
    if provider.name == CUDA_PROVIDER:
        capturing = provider._replace(options={**provider.options, **GRAPHS})
        try:
            return session(path, provider=capturing, reproducible=reproducible), True
        except Exception as error:  # as where an operation has no kernel there and runs on the processor
            log.warning("%s: runs without CUDA graphs: %s", path, error)
    return session(path, provider=provider, reproducible=reproducible), False


@contextmanager
def _lost_is_told() -> Iterator[None]:
    """Raise DeviceLost in the place of ONNX Runtime's error where CUDA says that its context is damaged for good."""
    try:
        yield
    except Exception as error:
        with suppress(LibraryMissing):  # the processor's runs need none
            (code,) = imported(CUDA_RUNTIME, CUDA_HINT).cudaDeviceSynchronize()
            if code.name in STICKY:
                raise DeviceLost(f"GPU: {code.name}: {error}") from None
        raise
