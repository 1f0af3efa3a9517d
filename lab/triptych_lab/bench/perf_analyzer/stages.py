"""Record what each stage of an ensemble reads, by calling the stages one after another as Triton does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from triptych.request import check
from triptych_contract.verbs import DATATYPES

Arrays = dict[str, NDArray[Any]]
NUMPY = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}


class Models(Protocol):
    """The models of a server."""

    def config(self, model: str) -> Mapping[str, Any]:
        """Return a model's configuration (`config.pbtxt`) as JSON."""
        ...

    def infer(self, model: str, inputs: Arrays, outputs: list[str]) -> Arrays:
        """Call a model; return the named outputs."""
        ...


class RecordedStage(NamedTuple):
    """One stage of an ensemble, with its inputs for one request."""

    model: str
    inputs: Arrays
    batched: bool  # by Triton, along the first dimension


def record(models: Models, ensemble: str, parameters: Mapping[str, Any]) -> Iterator[RecordedStage]:
    """Draw one picture stage by stage, and yield each stage with its inputs, in the order of the ensemble's configuration.

    Raises:
        InvalidRequest: a parameter cannot be sent.
        TriptychError: a stage failed.
    """
    known = {name: _array(name, value) for name, value in check(ensemble, parameters).items()}
    for step in models.config(ensemble)["ensemble_scheduling"]["step"]:
        model, sources, targets = step["model_name"], step["input_map"], step["output_map"]
        # An empty tensor stands for one that is not there: a request without a picture has no latents of one.
        inputs = {name: known[source] for name, source in sources.items() if source in known and known[source].size}
        yield RecordedStage(model, inputs, int(models.config(model).get("max_batch_size", 0)) > 0)
        outputs = models.infer(model, inputs, list(targets))
        known |= {targets[name]: array for name, array in outputs.items()}


def _array(name: str, value: Any) -> NDArray[Any]:
    return np.array(value if isinstance(value, tuple) else [value], NUMPY[DATATYPES[name]])


class TritonModels:
    """`Models` of a running server, over gRPC."""

    def __init__(self, url: str) -> None:
        import tritonclient.grpc

        self._triton: Any = tritonclient.grpc
        self._client: Any = tritonclient.grpc.InferenceServerClient(url)

    def config(self, model: str) -> Mapping[str, Any]:
        document: dict[str, Any] = self._client.get_model_config(model, as_json=True)
        return dict(document["config"])

    def infer(self, model: str, inputs: Arrays, outputs: list[str]) -> Arrays:
        from tritonclient.utils import InferenceServerException

        from triptych.errors import translate

        wanted = [self._triton.InferRequestedOutput(name) for name in outputs]
        try:
            result = self._client.infer(model, [self._tensor(*item) for item in inputs.items()], outputs=wanted)
        except InferenceServerException as error:
            raise translate(error, "") from None
        return {name: result.as_numpy(name) for name in outputs}

    def _tensor(self, name: str, array: NDArray[Any]) -> Any:
        from tritonclient.utils import np_to_triton_dtype

        tensor = self._triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        return tensor
