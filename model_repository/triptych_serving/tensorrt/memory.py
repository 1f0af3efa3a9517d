"""How much GPU memory builds hold, by what their exports say, before anything of them is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from triptych_contract.families import FAMILIES

from ..adapters.mix import GPU_ROWS
from ..adapters.mix import INPUTS as SLABS
from ..engines import Machine, profiles
from ..manifest import Manifest, ManifestError
from .library import CUDA_TARGET

# The most of requests' conditioning that is kept on the GPU: SDXL takes 1.3 MB for a guided one.
CONDITIONING_BYTES = 1 << 30
# The same of requests with adapters, whose slabs at rank 64 take 190 MB: as many as a batch of 16 rows has with guidance.
ADAPTER_BYTES = 2 << 30
# What CUDA takes for each process that uses it, whatever that does (seen from 0.3 to 0.6 GB).
CONTEXT_BYTES = 500_000_000


@dataclass(frozen=True)
class Need:
    """Bytes of GPU memory: held by each stage, by all processes for themselves, and for the time of the largest picture."""

    stages: Mapping[str, int]
    processes: int
    conditioning: int
    largest: int

    @property
    def held(self) -> int:
        return sum(self.stages.values()) + self.processes + self.conditioning

    def __str__(self) -> str:
        parts = {**self.stages, "CUDA in each process": self.processes, "conditioning": self.conditioning}
        listed = ", ".join(f"{name} {_gb(size)}" for name, size in parts.items())
        return f"{_gb(self.held)} GB ({listed}); {_gb(self.held + self.largest)} GB while the largest picture is drawn"


def need(manifests: Iterable[Manifest], capability: str, *, adapters: bool = True) -> Need:
    """Add up what serving these builds takes on a GPU like "sm89", with `adapters` or without."""
    stages: dict[str, int] = {}
    processes, largest, conditioning = 1, 0, CONDITIONING_BYTES  # one process is the loop's, with all denoisers
    for manifest in manifests:
        ours = manifest.target != "tensorrt"
        worn = {stage for stage, facts in manifest.stages.items() if facts.get("layers")}
        conditioning += ADAPTER_BYTES if worn and adapters else 0
        for stage in manifest.stages if adapters else manifest.stages.keys() - worn:
            held, more = _stage(manifest, stage, capability)
            # Triton's own backend gives each profile its memory for good.
            in_triton = not ours and stage not in manifest.model.denoisers
            stages[stage], largest = (held + more, largest) if in_triton else (held, max(largest, more))
        within = {
            *manifest.model.denoisers,
            *worn,
            *FAMILIES[manifest.family].prompted.values(),
        }  # other stages' processes
        processes += len(manifest.stages.keys() - within) if ours else 1
    return Need(stages, processes * CONTEXT_BYTES, conditioning, largest)


def check(manifests: Iterable[Manifest], machine: Machine, *, adapters: bool = True) -> None:
    """Refuse builds that hold more memory than the GPU has.

    Raises:
        ManifestError: gives the sum, what it is made of, and what to do.
    """
    wanted = need(manifests, machine.capability, adapters=adapters)
    if 0 < machine.memory_bytes < wanted.held:
        raise ManifestError(
            f"GPU memory: {wanted} asked for; {machine.gpu} has {_gb(machine.memory_bytes)} GB. Serve fewer models, export "
            "without a refiner, or with --precision STAGE=fp16 for stages that are fp32"
        )


def _stage(manifest: Manifest, stage: str, capability: str) -> tuple[int, int]:
    """Bytes that a stage holds, and how many more it takes for a picture of another size than the model's own."""
    facts = manifest.stages[stage]
    slabs = 2 * sum(math.prod(facts["inputs"][name]["shape"][1:]) for name in SLABS) if facts.get("layers") else 0
    if manifest.target == CUDA_TARGET:  # ONNX Runtime does not tell what its runs take beside weights
        weights = sum(manifest.artifacts[file]["bytes"] for file in facts["files"])
        return weights + slabs * sum(range(1, GPU_ROWS + 1)), 0  # inputs for each number of rows
    engine, made, slabs = facts["engines"][capability], profiles(manifest, stage), slabs * GPU_ROWS
    activations = engine.get("activation_bytes", ())
    if len(activations) != len(made):  # an older export, or a TensorRT that does not tell
        return engine.get("weights_bytes", 0) + slabs, 0
    own, other = ([n for n, one in zip(activations, made, strict=True) if one.one_size is own] for own in (True, False))
    return engine.get("weights_bytes", 0) + slabs + max(own, default=0), max(other, default=0)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
