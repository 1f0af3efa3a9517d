"""One adapter's file: looked over by its header when it is found, read whole when it is used. Strangers wrote it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .keys import ALPHA, PREFIXES, A, B, Key, Names, other_kind

MAX_BYTES = 4 << 30
MAX_HEADER_BYTES = 16 << 20
MAX_WORDS = 500
# bfloat16 are the upper halves of float32, which NumPy knows as whole numbers only.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code) for name, code in {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}.items()
}
TRIGGERS = ("modelspec.trigger_phrase", "trigger_words", "ss_trigger_words")
BASES = ("modelspec.architecture", "ss_base_model_version")
# What diffusers writes of a PEFT configuration, as JSON: how strong each layer is, where that is not one.
CONFIGURATION = "lora_adapter_metadata"
FUSE, MERGE = "fuse it into the weights before the export", "`triptych export --lora FILE` merges it into the weights"

Layers = Mapping[str, Mapping[str, Sequence[int]]]  # (in, out) channels by layer by stage
Slab = NDArray[np.float32]


class BadAdapter(Exception):
    """A file that is not served; says why."""


@dataclass(frozen=True)
class Facts:
    """What is known of an adapter by its header: the largest rank of its layers, the stages that it changes, how to call it."""

    rank: int
    stages: tuple[str, ...]
    trigger_words: str


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class File:
    """A safetensors file of `size` bytes as an adapter of a model with these layers.

    Raises:
        BadAdapter: it is none, or not one for this model.
    """

    def __init__(self, file: BinaryIO, size: int, layers: Layers, names: Names) -> None:
        if size > MAX_BYTES:
            raise BadAdapter(f"{size} bytes; legal: at most {MAX_BYTES}")
        self._tensors, self._metadata = _header(file, size)
        self._layers, self._names = layers, names
        self._keys = self._found()
        self.facts = Facts(max(self._ranks().values()), self._stages(), self._words())

    def slabs(self, data: bytes) -> dict[str, tuple[Slab, Slab]]:
        """Return what the stages read of it, by stage: A's side by side (Σ in, rank) and B's (rank, Σ out).

        `data` are the file's bytes. Strengths (alpha ÷ rank) are worked into the B's.

        Raises:
            BadAdapter: a number is not finite.
        """
        return {stage: self._slab(stage, data) for stage in self.facts.stages}

    def _slab(self, stage: str, data: bytes) -> tuple[Slab, Slab]:
        ranks = {key.layer: rank for key, rank in self._ranks().items() if key.stage == stage}
        sizes = self._layers[stage]
        most, width_in, width_out = max(ranks.values()), *(sum(size[k] for size in sizes.values()) for k in range(2))
        a, b = np.zeros((width_in, most), np.float32), np.zeros((most, width_out), np.float32)
        at_in = at_out = 0
        for layer, (own_in, own_out) in sizes.items():
            if rank := ranks.get(layer):
                down = self._array(Key(stage, layer, A), data).reshape(rank, own_in)
                up = self._array(Key(stage, layer, B), data).reshape(own_out, rank)
                a[at_in : at_in + own_in, :rank] = down.T
                b[:rank, at_out : at_out + own_out] = up.T * np.float32(self._strength(stage, layer, rank, data))
            at_in, at_out = at_in + own_in, at_out + own_out
        return a, b

    def _strength(self, stage: str, layer: str, rank: int, data: bytes) -> float:
        key = Key(stage, layer, ALPHA)
        if key in self._keys:
            return float(self._array(key, data).reshape(())) / rank
        return self._configured(stage, layer, rank)

    def _configured(self, stage: str, layer: str, rank: int) -> float:
        """Return how strong a PEFT configuration in the metadata makes a layer; without one that is 1."""
        try:
            known = json.loads(self._metadata.get(CONFIGURATION, "{}"))
            patterns = known.get(f"{stage}.alpha_pattern") or {}
            matches = (alpha for name, alpha in patterns.items() if f".{layer}".endswith(f".{name}"))
            alpha = float(next(matches, known.get(f"{stage}.lora_alpha", rank)))
            return alpha / (math.sqrt(rank) if known.get(f"{stage}.use_rslora") else rank)
        except (AttributeError, RecursionError, TypeError, ValueError):
            raise BadAdapter(f"metadata {CONFIGURATION}: not what diffusers writes") from None

    def _array(self, key: Key, data: bytes) -> Slab:
        name = self._keys[key]
        tensor = self._tensors[name]
        stored = np.frombuffer(data, DTYPES[tensor.dtype], math.prod(tensor.shape), tensor.begin)
        halves = tensor.dtype == "BF16"
        values: Slab = (stored.astype(np.uint32) << 16).view(np.float32) if halves else stored.astype(np.float32)
        if not np.isfinite(values).all():
            raise BadAdapter(f"{_short(name)}: numbers that are not finite")
        return values

    def _found(self) -> dict[Key, str]:
        """Return the tensors' names by what they are."""
        found: dict[Key, str] = {}
        for name in self._tensors:
            if kind := other_kind(name):
                raise BadAdapter(f"{kind} ({_short(name)}); legal: LoRA; {FUSE}")
            key = self._names.find(name)
            if key is None:
                raise BadAdapter(self._unknown(name))
            if key in found:
                raise BadAdapter(f"{_short(name)}: the same as {_short(found[key])}")
            found[key] = name
        if not found:
            raise BadAdapter("no tensors")
        for key, name in found.items():
            self._check(key, name, found)
        return found

    def _check(self, key: Key, name: str, found: Mapping[Key, str]) -> None:
        own_in, own_out = self._layers[key.stage][key.layer]
        for part in (A, B):
            if key._replace(part=part) not in found:
                raise BadAdapter(f"{_short(name)}: its {'down' if part == A else 'up'} half is missing")
        shape, rank = self._tensors[name].shape, self._tensors[found[key._replace(part=A)]].shape[:1]
        legal = {A: (*rank, own_in), B: (own_out, *rank), ALPHA: ()}[key.part]
        if shape not in (legal, (*legal, 1, 1), *([(1,)] if key.part == ALPHA else [])) or rank == (0,):
            raise BadAdapter(f"{_short(name)}: shape {list(shape)}; legal: {list(legal)}{self._base()}")

    def _unknown(self, name: str) -> str:
        tensor = self._tensors[name]
        if (len(tensor.shape) == 4 and tensor.shape[2:] != (1, 1)) or "_resnets_" in name.replace(".", "_"):
            return f"LoCon ({_short(name)} is of a convolution); legal: LoRA of transformers and text encoders; {MERGE}"
        of_base = name.startswith(tuple(PREFIXES))
        mend = f"; {MERGE}" if of_base else ""
        return f"{_short(name)}: no layer of this model that adapters change{self._base()}{mend}"

    def _base(self) -> str:
        """Return a hint that it is another model's, where the metadata say whose."""
        return next((f"; made for {_short(self._metadata[name])}" for name in BASES if name in self._metadata), "")

    def _ranks(self) -> dict[Key, int]:
        return {key: self._tensors[name].shape[0] for key, name in self._keys.items() if key.part == A}

    def _stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in self._layers if any(key.stage == stage for key in self._keys))

    def _words(self) -> str:
        words = next((self._metadata[name] for name in TRIGGERS if self._metadata.get(name)), "")
        return "".join(one for one in words[:MAX_WORDS] if one.isprintable())


def _header(file: BinaryIO, size: int) -> tuple[dict[str, _Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file of `size` bytes."""
    length = file.read(8)
    if len(length) < 8:
        raise BadAdapter(f"{size} bytes; legal: a whole safetensors file")
    (count,) = struct.unpack("<Q", length)
    if not 2 <= count <= min(MAX_HEADER_BYTES, size - 8):
        raise BadAdapter(f"a header of {count} bytes in a file of {size}; legal: a whole safetensors file")
    try:
        header = json.loads(file.read(count), object_pairs_hook=_once)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no text")
        tensors = {name: _tensor(name, one, count + 8) for name, one in header.items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise BadAdapter(f"an unreadable header ({_short(str(error))}); legal: a whole safetensors file") from None
    at = count + 8
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            raise BadAdapter(f"{_short(name)}: begins at byte {tensor.begin}; legal: {at}, where the one before ends")
        at = tensor.end
    if at != size:
        raise BadAdapter(f"tensors end at byte {at} of {size}; legal: a whole safetensors file")
    return tensors, metadata


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name twice")
    return found


def _tensor(name: str, given: Mapping[str, Any], begin: int) -> _Tensor:
    """Read one tensor's entry; offsets count from `begin`."""
    dtype, shape, (first, last) = given["dtype"], tuple(given["shape"]), given["data_offsets"]
    if not all(type(number) is int and 0 <= number <= MAX_BYTES for number in (*shape, first, last)):
        raise ValueError(f"{name}: sizes that are no whole numbers")
    if dtype not in DTYPES:
        raise BadAdapter(f"{_short(name)}: {_short(str(dtype))}; legal: {', '.join(DTYPES)}")
    if last - first != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{name}: {last - first} bytes for shape {list(shape)}")
    return _Tensor(dtype, shape, begin + first, begin + last)


def _short(text: str) -> str:
    plain = text if text.isprintable() else ascii(text)
    return plain if len(plain) <= 90 else f"{plain[:89]}…"
