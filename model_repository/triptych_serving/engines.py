"""Which engine of a build runs on this GPU; one that is missing, harmed, foreign or stale is refused with what mends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import step
from .manifest import Manifest, ManifestError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Machine:
    """What engines have to fit: the target whose TensorRT is here, its version, and the GPU, like "sm89", with its name.

    `memory_bytes` is all that the GPU has; 0 where that is not known.
    """

    target: str
    version: str
    capability: str
    gpu: str = ""
    memory_bytes: int = 0


@dataclass(frozen=True)
class Profile:
    """The range of shapes that a part of an engine is tuned for: by input, smallest, tuned for and largest."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Profile:
        shapes = {tensor: tuple(tuple(shape) for shape in given) for tensor, given in document["shapes"].items()}
        return cls(document["name"], shapes)  # type: ignore[arg-type]

    @property
    def one_size(self) -> bool:
        """Whether nothing but the number of rows varies in it."""
        return all(smallest[1:] == largest[1:] for smallest, _, largest in self.shapes.values())

    def holds(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes can run in it."""
        return shapes.keys() <= self.shapes.keys() and all(
            self._within(tensor, shape) for tensor, shape in shapes.items()
        )

    def _within(self, tensor: str, shape: Shape) -> bool:
        smallest, _, largest = self.shapes[tensor]
        fits = (low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
        return len(shape) == len(smallest) and all(fits)


def narrowest(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """The index of the first profile that holds `shapes`; builds list narrow ones first.

    Raises:
        ValueError: none does; says what was given.
    """
    for index, profile in enumerate(profiles):
        if profile.holds(shapes):
            return index
    raise ValueError(f"shapes {dict(shapes)}; legal: those of profiles {', '.join(p.name for p in profiles)}")


def profiles(manifest: Manifest, stage: str) -> tuple[Profile, ...]:
    """The profiles of a stage's engines, narrow ones first."""
    return tuple(Profile.from_json(document) for document in manifest.stages[stage]["profiles"])


def engine_path(manifest: Manifest, stage: str, machine: Machine) -> Path:
    """The file of a stage's engine for this machine, checked.

    Raises:
        ManifestError: as `fitting`, or the file is missing, truncated or not the one that was built.
    """
    path = fitting(manifest, stage, machine)
    try:
        return manifest.verified(path)
    except ManifestError as error:
        wrong = str(error).removesuffix("; export the model again")
        raise ManifestError(f"{wrong}; {_mend(manifest, machine)}") from None


def fitting(manifest: Manifest, stage: str, machine: Machine) -> str:
    """The file of a stage's engine for this machine, relative to the build, by what the manifest says of it.

    Raises:
        ManifestError: there is none, or it is for another GPU, target or TensorRT, made from another export of the stage, or does
            not hold the model's own size; names it and what mends it.
    """
    facts, mend = manifest.stages[stage], _mend(manifest, machine)
    if manifest.target != machine.target:
        raise ManifestError(f"{manifest.build}: exported for {manifest.target}, not {machine.target}; {mend}")
    engine = facts.get("engines", {}).get(machine.capability)
    if engine is None:
        there = ", ".join(facts.get("engines", {})) or "none"
        wanted = machine.capability.removeprefix("sm")
        mend += f" --compute-capability {wanted[:-1]}.{wanted[-1]}" if machine.target == "tensorrt-rtx" else ""
        raise ManifestError(f"{stage}: no engine for {machine.capability}, engines for {there}; {mend}")
    path: str = engine["path"]
    if engine["version"] != machine.version:
        raise ManifestError(f"{path}: built by TensorRT {engine['version']}, here is {machine.version}; {mend}")
    if engine["onnx"] != facts["sha256"]:
        raise ManifestError(f"{path}: stale, made from another export of {stage}; {mend}")
    _check_profiles(manifest, stage, mend)
    return path


def _mend(manifest: Manifest, machine: Machine) -> str:
    return f"triptych export … --target {machine.target} -o {manifest.build}"


def _check_profiles(manifest: Manifest, stage: str, mend: str) -> None:
    sizes, inputs = manifest.model.default_sizes, manifest.stages[stage]["inputs"]
    if step.taken(inputs):
        inputs = step.inputs(inputs)
    own = {name: tuple(sizes.get(dim, dim) for dim in spec["shape"]) for name, spec in inputs.items()}
    if not any(profile.holds(own) for profile in profiles(manifest, stage)):
        raise ManifestError(f"{stage}: no profile of its engine holds the model's own size, {own}; {mend}")
