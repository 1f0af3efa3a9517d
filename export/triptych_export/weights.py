"""A folder in diffusers layout: its configs and its weights (safetensors only)."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych_serving.manifest import sha256

from .errors import ExportError

# "model.fp16.safetensors", "model.bf16-00001-of-00002.safetensors", "model-00001-of-00002.fp16.safetensors".
VARIANT = re.compile(r"\.(fp16|bf16)[.-]")


@dataclass(frozen=True)
class Kind:
    """A kind of folder: diffusers' pipeline class, the components we export from it, its tokenizers."""

    pipeline: str
    components: tuple[str, ...]
    tokenizers: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """A checked folder. Nothing of it is loaded yet."""

    folder: Path
    index: Mapping[str, Any]
    kind: Kind

    @classmethod
    def open(cls, folder: Path, kind: Kind) -> Weights:
        """Check the folder's parts.

        Raises:
            ExportError: not of this kind in diffusers layout, a part is missing or of an unknown class, or its weights are
                not safetensors.
        """
        index = read_index(folder)
        if index.get("_class_name") != kind.pipeline:
            raise ExportError(f"model_index.json: _class_name {index.get('_class_name')!r}; supported: {kind.pipeline}")
        weights = cls(folder.resolve(), index, kind)
        for part in (*kind.components, *kind.tokenizers, "scheduler"):
            if not index.get(part, [None])[0] or not all(one.is_dir() for one in weights.folders(part)):
                needed = ", ".join((*kind.components, *kind.tokenizers))
                raise ExportError(f"{part}: missing from {folder}; such a folder has {needed}")
        for component in kind.components:
            weights.files(component)
            weights.check(component)
        return weights

    def folders(self, part: str) -> tuple[Path, ...]:
        """Where a part lies."""
        return (self.folder / part,)

    def check(self, component: str) -> None:
        """A component's class must be known.

        Raises:
            ExportError: it is not.
        """
        self._class(component)

    def config(self, part: str) -> dict[str, Any]:
        """The JSON config of a component, or of the scheduler."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        document: dict[str, Any] = json.loads((self.folders(part)[0] / name).read_text())
        return document

    def variant(self, component: str) -> str | None:
        """ "fp16" or "bf16" where the component's only files are of that variant, else None."""
        found = [VARIANT.search(file.name) for file in self._safetensors(component)]
        return None if None in found or not found else sorted({match[1] for match in found if match})[0]

    def files(self, component: str) -> list[Path]:
        """The safetensors files of a component, in the variant that is loaded."""
        variant = self.variant(component)
        chosen = []
        for file in self._safetensors(component):
            match = VARIANT.search(file.name)
            if (match[1] if match else None) == variant:
                chosen.append(file)
        if not chosen:
            raise ExportError(f"{component}: no .safetensors file in {self.folder / component}; pickles are not read")
        return chosen

    def source(self, component: str) -> str:
        """A component's weights by content."""
        return combined(map(_cached_sha256, self.files(component)))

    def load(self, component: str, as_stored: bool = False) -> Any:
        """A component as a torch module in evaluation mode, in float32; `as_stored`, in the files' type where they have one."""
        import torch

        module = self._class(component).from_pretrained(
            self.folder / component,
            dtype=self._stored_type(component) if as_stored else torch.float32,
            variant=self.variant(component),
            use_safetensors=True,
            low_cpu_mem_usage=True,
            local_files_only=True,
        )
        return module.eval().requires_grad_(False)

    def load_tokenizer(self, part: str) -> Any:
        """A tokenizer as transformers reads it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder / part, local_files_only=True)

    @property
    def call_defaults(self) -> dict[str, Any]:
        """The defaults of diffusers' own pipeline call."""
        import diffusers

        signature = inspect.signature(getattr(diffusers, self.kind.pipeline).__call__)
        return {name: parameter.default for name, parameter in signature.parameters.items()}

    def _stored_type(self, component: str) -> Any:
        """bfloat16 or float16 where every tensor of a component is stored in it, else float32."""
        import torch
        from safetensors import safe_open

        found = set()
        for path in self.files(component):
            with safe_open(path, "pt") as file:
                found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        halves = {("BF16",): torch.bfloat16, ("F16",): torch.float16}
        return halves.get(tuple(found), torch.float32)

    def _safetensors(self, component: str) -> list[Path]:
        return sorted((self.folder / component).glob("*.safetensors"))

    def _class(self, component: str) -> Any:
        """The component's class. Pipelines name some of their own by a module of diffusers that has since moved."""
        import diffusers
        import transformers
        from diffusers.pipelines.deprecated import wuerstchen

        library, name = self.index[component]
        for module in {"transformers": (transformers,)}.get(library, (diffusers, wuerstchen)):
            if hasattr(module, name):
                return getattr(module, name)
        raise ExportError(f"model_index.json: {component} {library}.{name}; supported: classes of this diffusers")


def read_index(folder: Path) -> dict[str, Any]:
    """A folder's `model_index.json`.

    Raises:
        ExportError: there is none.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ExportError(f"{folder}: has no model_index.json; a folder in diffusers layout is needed")
    index: dict[str, Any] = json.loads(index_file.read_text())
    return index


def combined(parts: Iterable[str]) -> str:
    """One SHA-256 of several texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


_cached_sha256 = functools.cache(sha256)
