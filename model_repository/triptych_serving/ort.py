"""Run stages on ONNX Runtime: encoders and decoders, and the loop's `Denoiser`."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .adapters.mix import AXIS, slab_of
from .adapters.mix import INPUTS as SLABS
from .denoiser import PROMPT, Conditioning, Floats, only
from .manifest import TIMESTEPS

# The operations of a small denoiser are too short to be split over threads. So its batches run as two halves at the same time,
# each on half of the CPUs; two, since one guided request has two rows. A large denoiser can use all CPUs for a single row.
LANES = 2
SMALL_BYTES = 500_000_000
# What only some requests bring; for others it is zeros.
OF_SOME = (*SLABS, *PROMPT)
NOTHING: Mapping[str, Floats] = {}
# Where a graph that is given as bytes has its external weights.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class Provider(NamedTuple):
    """What of ONNX Runtime's runs a graph, with its options, and the device whose memory it works in."""

    name: str
    device: str
    options: Mapping[str, str] = {}


CPU = Provider("CPUExecutionProvider", "cpu")


def session(
    path: Path, lanes: int = 1, provider: Provider = CPU, *, reproducible: bool = False, weights: Path | None = None
) -> ort.InferenceSession:
    """Load a graph; up to `lanes` calls at a time share the CPUs that this process may use.

    A graph that shares another's weights names their files from the folder `weights` on.

    Threads do not spin between runs: the stages share these CPUs, and a spinning one would slow down a working one.

    Raises:
        RuntimeError: ONNX Runtime did without the provider, which it only logs.
    """
    options = ort.SessionOptions()
    options.use_deterministic_compute = reproducible
    options.intra_op_num_threads = math.ceil(len(os.sched_getaffinity(0)) / lanes)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if weights is not None:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(weights))
    graph = str(path) if weights is None else path.read_bytes()
    made = ort.InferenceSession(graph, options, providers=[(provider.name, dict(provider.options))])
    if provider.name not in made.get_providers():
        raise RuntimeError(f"{provider.name}: ONNX Runtime cannot load it (see `triptych doctor`)")
    return made


def types(runs: ort.InferenceSession) -> dict[str, np.dtype[Any]]:
    """Give the types of a graph's inputs by name."""
    named = {tensor.name: tensor.type.removeprefix("tensor(").removesuffix(")") for tensor in runs.get_inputs()}
    return {name: np.dtype("float32" if given == "float" else given) for name, given in named.items()}


class OrtStage:
    """One ONNX graph: arrays in and arrays out, by name. `outputs` names those that are wanted; by default all."""

    def __init__(
        self,
        path: Path,
        outputs: Iterable[str] = (),
        lanes: int = 1,
        provider: Provider = CPU,
        *,
        reproducible: bool = False,
        weights: Path | None = None,
    ) -> None:
        self._session = session(path, lanes, provider, reproducible=reproducible, weights=weights)
        self.inputs = {tensor.name: tensor.shape for tensor in self._session.get_inputs()}
        self.outputs = list(outputs) or [tensor.name for tensor in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(inputs)), strict=True))


class OrtDenoiser:
    """`Denoiser` over an exported graph on the CPU. A row has the same bytes in every batch, which the export checks.

    `output` is what it gives, if not a prediction. A graph that `shares` another's weights, of a folder as in
    `session`, is as large as that.
    """

    def __init__(
        self, graph: Path | OrtStage, output: str = "out_sample", shares: tuple[Path | None, Path] | None = None
    ) -> None:
        self._output = output
        weights, like = shares or (None, graph)
        self._lanes = 1 if isinstance(like, OrtStage) else lanes(like)
        self._stage = graph if isinstance(graph, OrtStage) else OrtStage(graph, lanes=self._lanes, weights=weights)
        self._pool = ThreadPoolExecutor(self._lanes)
        (self._timestep,) = (name for name in self._stage.inputs if name in TIMESTEPS)
        self._one_timestep = not self._stage.inputs[self._timestep]
        inputs = self._stage.inputs
        self._rows = _Rows({name: inputs[name] for name in inputs if name not in ("sample", self._timestep)})

    def predict(
        self,
        sample: Floats,
        timestep: Floats,
        conditioning: Sequence[Conditioning],
        more: Mapping[str, Floats] = NOTHING,
    ) -> Floats:
        """As `Denoiser.predict`; `more` are inputs, (R, …), that are others in each step."""
        timestep = only(timestep) if self._one_timestep else timestep
        places, kept = self._rows.of(conditioning, more)
        given = {"sample": sample, self._timestep: timestep, **more}
        inputs = {**kept, **_part(given, np.argsort(places))}
        return self._of_all(inputs, len(sample))[places]

    def _of_all(self, inputs: Mapping[str, Floats], rows: int) -> Floats:
        if self._lanes == 1 or rows == 1:
            return self._run(inputs)
        second = self._pool.submit(self._run, _part(inputs, slice(rows // 2, None)))
        return np.concatenate([self._run(_part(inputs, slice(rows // 2))), second.result()])

    def _run(self, inputs: Mapping[str, Floats]) -> Floats:
        return self._stage(inputs)[self._output]

    def release(self, conditioning: Conditioning) -> None:
        self._rows.forget(conditioning)


class _Rows:
    """The conditioning of a batch's rows, by input. A row lies where it lay in the call before: slabs are large.

    Of a graph that takes controls and more, rows without adapters or image prompts bring zeros for these. A slab may be a graph's
    inputs in parts.
    """

    def __init__(self, inputs: Mapping[str, Sequence[Any]]) -> None:
        self._parts: dict[str, dict[str, Sequence[Any]]] = {}
        for name, shape in inputs.items():
            self._parts.setdefault(slab_of(name), {})[name] = shape
        self._owners: list[tuple[Conditioning, int] | None] = []
        self._arrays: dict[str, Floats] = {}

    def of(
        self, conditioning: Sequence[Conditioning], without: Collection[str] = ()
    ) -> tuple[NDArray[np.intp], dict[str, Floats]]:
        """Give where each row of the requests lies, (R,), and each input, (R, …) float32, which the next call overwrites."""
        names = [name for name in self._parts if name not in without]
        wanted = [(one, row) for one in conditioning for row in range(len(one))]
        self._make_room(conditioning, names, len(wanted))
        lay = {owner: place for place, owner in enumerate(self._owners[: len(wanted)])}
        places = {owner: lay[owner] for owner in wanted if owner in lay}
        free = iter({*range(len(wanted))}.difference(places.values()))
        for one in conditioning:
            new = {row: next(free) for row in range(len(one)) if (one, row) not in places}
            if new:
                self._write(one, names, new)
            places |= {(one, row): place for row, place in new.items()}
        return np.array([places[owner] for owner in wanted]), {
            name: array[: len(wanted)] for name, array in self._arrays.items()
        }

    def forget(self, conditioning: Conditioning) -> None:
        self._owners = [None if owner and owner[0] is conditioning else owner for owner in self._owners]
        if not any(self._owners):
            self._owners, self._arrays = [], {}

    def _make_room(self, conditioning: Sequence[Conditioning], names: Sequence[str], rows: int) -> None:
        """Have arrays of the rows' shapes that are long enough."""
        shapes = {
            part: tuple(shape[1:]) if name in OF_SOME else conditioning[0].shape(name)
            for name in names
            for part, shape in self._parts[name].items()
        }
        if len(self._owners) < rows or {part: array.shape[1:] for part, array in self._arrays.items()} != shapes:
            self._owners = [None] * rows
            self._arrays = {part: np.empty((rows, *shape), np.float32) for part, shape in shapes.items()}

    def _write(self, one: Conditioning, names: Sequence[str], new: Mapping[int, int]) -> None:
        """Write rows of a request, each at its place."""
        rows, places = [*new], [*new.values()]
        for place in places:
            self._owners[place] = None  # until all of it is there
        for name in names:
            arrays = [self._arrays[part] for part in self._parts[name]]
            brought = name in one.arrays or (name in SLABS and one.mix is not None)
            if name in OF_SOME and not brought:
                for array in arrays:
                    array[places] = 0.0
                continue
            ends = np.cumsum([array.shape[AXIS[name]] for array in arrays[:-1]]) if len(arrays) > 1 else ()
            for array, part in zip(arrays, np.split(one[name], ends, AXIS.get(name, 1)), strict=True):
                array[places] = part[rows]
        for row, place in new.items():
            self._owners[place] = one, row


def lanes(path: Path) -> int:
    """Return how many parts of a batch the denoiser in `path` should run at the same time: `LANES` if it is small, else 1."""
    size = sum(os.path.getsize(file) for file in (path, f"{path}_data") if os.path.exists(file))
    return min(LANES, len(os.sched_getaffinity(0))) if size < SMALL_BYTES else 1


def _part(inputs: Mapping[str, Floats], rows: slice | NDArray[np.intp]) -> dict[str, Floats]:
    """Take some of the rows of each input; a scalar, which is for all rows, stays as it is."""
    return {name: array[rows] if array.ndim else array for name, array in inputs.items()}
