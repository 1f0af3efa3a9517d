"""Keep the conditioning of requests on the device: uploaded at the first step that needs it, freed when the phase ends."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from ..denoiser import Conditioning
from .device import Device, DeviceError, Memory
from .memory import CONDITIONING_BYTES
from .staging import Staging


class Resident:
    """Hold the arrays `names` of conditionings on the device; above the limit, those that were used longest ago are dropped.

    Freeing is enqueued on the stream like all else, so that steps which still read the memory are done before.
    """

    def __init__(
        self, device: Device, names: Sequence[str], staging: Staging, limit_bytes: int = CONDITIONING_BYTES
    ) -> None:
        self._device, self._names, self._staging, self._limit = device, names, staging, limit_bytes
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
        arrays = {name: conditioning[name] for name in self._names}
        needed = sum(array.nbytes for array in arrays.values())
        while self._memory and self.nbytes + needed > self._limit:
            self.release(next(iter(self._memory)))
        there: dict[str, Memory] = {}
        self._memory[conditioning] = there
        try:
            for name, array in arrays.items():
                there[name] = self._device.allocate(array.nbytes, f"conditioning {name}")
                self.nbytes += array.nbytes
                host = self._staging.array(array.shape, array.dtype)  # others would wait for the step before
                np.copyto(host, array)
                self._device.upload(host, there[name])
        except DeviceError:
            self.release(conditioning)
            raise
