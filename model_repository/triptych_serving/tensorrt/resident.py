"""Keep the conditioning of requests on the device: uploaded at the first step that needs it, freed when the phase ends."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.mix import INPUTS as SLABS
from ..denoiser import Conditioning
from .device import Device, DeviceError, Memory
from .memory import CONDITIONING_BYTES
from .staging import Staging


class Resident:
    """Hold arrays of conditionings on the device, by name in the types that the engine reads, each as `Conditioning.kept`.

    Above the limit, those that were used longest ago are dropped.

    Freeing is enqueued on the stream like all else, so that steps which still read the memory are done before.
    """

    def __init__(
        self,
        device: Device,
        types: Mapping[str, np.dtype[Any]],
        staging: Staging,
        limit_bytes: int = CONDITIONING_BYTES,
    ) -> None:
        self._device, self._types, self._staging, self._limit = device, types, staging, limit_bytes
        self._memory: OrderedDict[Conditioning, Mapping[str, Memory]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._memory)

    def __getitem__(self, conditioning: Conditioning) -> Mapping[str, Memory]:
        """Return its arrays on the device, by name, uploading them if needed.

        The next call may free them, so enqueue whatever reads them before.

        Raises:
            DeviceError: the device refuses, or has too little memory; nothing of it is kept.
        """
        if conditioning not in self._memory:
            self._upload(conditioning)
        self._memory.move_to_end(conditioning)
        return self._memory[conditioning]

    def release(self, conditioning: Conditioning) -> None:
        """Free its memory, if it has any here."""
        for memory in self._memory.pop(conditioning, {}).values():
            self.nbytes -= memory.nbytes
            self._device.free(memory)

    def _upload(self, conditioning: Conditioning) -> None:
        arrays = {name: np.ascontiguousarray(conditioning.kept(name), dtype) for name, dtype in self._types.items()}
        needed = sum(array.nbytes for array in arrays.values())
        while self._memory and self.nbytes + needed > self._limit:
            self.release(next(iter(self._memory)))
        there: dict[str, Memory] = {}
        self._memory[conditioning] = there
        try:
            for name, array in arrays.items():
                there[name] = self._device.allocate(array.nbytes, f"conditioning {name}")
                self.nbytes += array.nbytes
                # From other than page-locked memory an upload waits for the step before; slabs do, since staging would keep that
                # much of it for good.
                self._device.upload(array if name in SLABS else self._staged(array), there[name])
        except DeviceError:
            self.release(conditioning)
            raise

    def _staged(self, array: NDArray[Any]) -> NDArray[Any]:
        host = self._staging.array(array.shape, array.dtype)
        np.copyto(host, array)
        return host
