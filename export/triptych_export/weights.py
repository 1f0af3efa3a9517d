"""A folder in diffusers layout: its configs and its weights (safetensors only)."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych_serving.manifest import sha256

from .documents import named, read_json, read_object
from .errors import ExportError, on_one_line

# "model.fp16.safetensors", "model.bf16-00001-of-00002.safetensors", "model-00001-of-00002.fp16.safetensors".
VARIANT = re.compile(r"\.(fp16|bf16)[.-]")
# Older transformers saved the numbers 0, 1, … as if they were weights; nothing is lost without them.
NO_WEIGHTS = re.compile(r"(^|\.)position_ids$")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
MANY = 3  # so many names of weights are told, then only how many more


@dataclass(frozen=True)
class Kind:
    """A kind of folder: diffusers' pipeline class, the class of each component we export from it, its tokenizers."""

    pipeline: str
    classes: Mapping[str, str]
    tokenizers: tuple[str, ...]

    @property
    def components(self) -> tuple[str, ...]:
        """The components' names."""
        return tuple(self.classes)

    @property
    def inversions(self) -> bool:
        """Whether the pipeline takes textual inversions."""
        import diffusers

        return hasattr(getattr(diffusers, self.pipeline), "maybe_convert_prompt")


@dataclass(frozen=True)
class Weights:
    """A checked folder. Nothing of it is loaded yet."""

    folder: Path
    index: Mapping[str, Any]
    kind: Kind

    @classmethod
    def open(cls, folder: Path, kind: Kind) -> Weights:
        """Check the whole folder: every part, its class, its JSON files, its weights.

        Raises:
            ExportError: not of this kind in diffusers layout, a part is missing or of another class, a file cannot be read,
                or its weights are not safetensors or not those of its class and config.
        """
        index = read_index(folder)
        if index.get("_class_name") != kind.pipeline:
            raise ExportError(f"model_index.json: _class_name {index.get('_class_name')!r}; supported: {kind.pipeline}")
        weights = cls(folder.resolve(), index, kind)
        for part in (*kind.components, *kind.tokenizers, "scheduler"):
            if not _class_in(index, part) or not all(one.is_dir() for one in weights.folders(part)):
                needed = ", ".join((*kind.components, *kind.tokenizers))
                raise ExportError(f"{part}: missing from {folder}; such a folder has {needed}")
            for file in (file for one in weights.folders(part) for file in sorted(one.glob("*.json"))):
                read_json(file)
        for component in kind.components:
            weights.files(component)
            weights.config(component)
        for component in kind.components:
            weights.check(component)
        for tokenizer in kind.tokenizers:
            weights.check_tokenizer(tokenizer)
        return weights

    def folders(self, part: str) -> tuple[Path, ...]:
        """Where a part lies."""
        return (self.folder / part,)

    def check(self, component: str) -> None:
        """A component's class must be ours, and its files must hold exactly the weights of its class and config.

        Raises:
            ExportError: they do not.
        """
        found = _class_in(self.index, component)
        if found != self.kind.classes[component]:
            raise ExportError(f"model_index.json: {component} {found}; supported: {self.kind.classes[component]}")
        for file in self.files(component):
            _check_whole(file)
        self.skeleton(component)

    def skeleton(self, component: str) -> Any:
        """A component as a torch module that knows its weights' shapes only.

        Raises:
            ExportError: its files do not hold exactly its weights.
        """
        return self._loaded(component, device_map="meta", dtype=self._stored_type(component))

    def check_tokenizer(self, part: str) -> None:
        """Every word of a tokenizer must be one of its text encoder's, and no prompt longer than that takes.

        Raises:
            ExportError: they do not fit, or the tokenizer cannot be read.
        """
        tokenizer, encoder = self.load_tokenizer(part), part.replace("tokenizer", "text_encoder")
        config = self.config(encoder)
        for what, found, most in (
            ("model_max_length", tokenizer.model_max_length, "max_position_embeddings"),
            ("number of words", 1 + max(tokenizer.get_vocab().values()), "vocab_size"),
        ):
            if found > config[most]:
                raise ExportError(f"{part}: {what} {found}; supported: up to {encoder}'s {most}, {config[most]}")

    def document(self, part: str) -> dict[str, Any]:
        """The JSON config of a component, or of the scheduler, as it is stored."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_object(self.folders(part)[0] / name)

    def config(self, part: str) -> dict[str, Any]:
        """The same as diffusers reads it: what is left out is as the class has it, and the scheduler's class is the index's."""
        document = self.document(part)
        if part == "scheduler":
            return {**document, "_class_name": _class_in(self.index, part) or document.get("_class_name")}
        return {**defaults_of(self._class(part)), **document}

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
            raise ExportError(
                f"{component}: no .safetensors file in {self.folders(component)[0]}; pickles are not read"
            )
        return chosen

    def source(self, component: str) -> str:
        """A component's weights by content."""
        return combined(map(cached_sha256, self.files(component)))

    def load(self, component: str, as_stored: bool = False) -> Any:
        """A component as a torch module in evaluation mode, in float32; `as_stored`, in the files' type where they have one.

        Raises:
            ExportError: its files do not hold exactly its weights.
        """
        import torch

        dtype = self._stored_type(component) if as_stored else torch.float32
        return self._loaded(component, dtype=dtype, low_cpu_mem_usage=True).eval().requires_grad_(False)

    def shapes(self, component: str) -> dict[str, Sequence[int]]:
        """The shape of each of a component's parameters, by its name; nothing is loaded."""
        module = self._loaded(component, device_map="meta", dtype=self._stored_type(component))
        return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}

    def load_tokenizer(self, part: str) -> Any:
        """A tokenizer as transformers reads it.

        Raises:
            ExportError: transformers does not.
        """
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder / part, local_files_only=True)
        except Exception as error:  # whatever a damaged file leads to
            raise ExportError(f"{part}: {on_one_line(error)}; supported: what transformers' tokenizers read") from error

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
        return sorted(self.folders(component)[0].glob("*.safetensors"))

    def _class(self, component: str) -> Any:
        """The component's class."""
        import diffusers
        import transformers
        from diffusers.pipelines.deprecated import wuerstchen

        name = self.kind.classes[component]
        return next(
            getattr(library, name) for library in (transformers, diffusers, wuerstchen) if hasattr(library, name)
        )

    def _loaded(self, component: str, **how: Any) -> Any:
        """The component's module. On the device "meta" nothing but the files' headers is read."""
        try:
            module, found = self._class(component).from_pretrained(
                self.folders(component)[0],
                variant=self.variant(component),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **how,
            )
        except Exception as error:  # whatever a config that does not fit leads to
            supported = f"what {self.kind.classes[component]} of this {self._class(component).__module__.partition('.')[0]} takes"
            raise ExportError(f"{component}/config.json: {on_one_line(error)}; supported: {supported}") from error
        if fault := _fault(found):
            files = self.files(component)
            raise ExportError(f"{named(files[0]) if len(files) == 1 else component}: {fault}")
        return module


def _class_in(index: Mapping[str, Any], part: str) -> str | None:
    """The class that an index names for a part."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def defaults_of(cls: Any) -> dict[str, Any]:
    """What a class's config says where nothing is given: transformers have a class for it, diffusers the constructor."""
    if hasattr(cls, "config_class") and cls.config_class is not None:
        return dict(cls.config_class().to_dict())
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def _check_whole(file: Path) -> None:
    """Raise ExportError unless a safetensors file has a header and all the bytes that it tells of."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            pass
    except (OSError, SafetensorError) as error:
        size = file.stat().st_size if file.exists() else 0
        pointer = size < 1024 and file.exists() and file.read_bytes().startswith(b"version https://git-lfs")
        found = (
            "a pointer of Git LFS, not the file (git lfs pull)" if pointer else f"{size} bytes, {on_one_line(error)}"
        )
        raise ExportError(f"{named(file)}: {found}; supported: a whole safetensors file") from None


def _fault(found: Mapping[str, Any]) -> str | None:
    """What is wrong with loaded weights, or None; `found` is the loading info of transformers and diffusers."""
    missing = sorted(found["missing_keys"])
    unexpected = sorted(key for key in found["unexpected_keys"] if not NO_WEIGHTS.search(key))
    sizes = [
        f"{name} {list(stored)} instead of {list(wanted)}" for name, stored, wanted in sorted(found["mismatched_keys"])
    ]
    told = {"missing": missing, "unexpected": unexpected, "of another size": sizes}
    if not any(told.values()):
        return None
    if any("base_layer." in key or "lora_" in key for key in unexpected):
        means = "a LoRA was left in when it was saved: fuse or unload it, then save again"
    elif sizes or (missing and unexpected):
        means = "the weights are another model's than config.json describes"
    else:
        means = (
            "it was saved or converted in part"
            if missing
            else "it is more than this part: another model, or its training"
        )
    counted = "; ".join(f"{len(names)} weights {what} ({few(names)})" for what, names in told.items() if names)
    return f"{counted}; supported: exactly the weights that config.json describes. Usually {means}"


def few(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = [f"and {len(names) - MANY} more"] if len(names) > MANY else []
    return ", ".join([*names[:MANY], *more])


def read_index(folder: Path) -> dict[str, Any]:
    """A folder's `model_index.json`.

    Raises:
        ExportError: there is none, or it cannot be read.
    """
    if not (folder / "model_index.json").is_file():
        raise ExportError(f"{folder}: {_instead_of_a_folder(folder)}")
    return read_object(folder / "model_index.json")


def _instead_of_a_folder(path: Path) -> str:
    """What is there instead of a folder in diffusers layout, and how to come to one."""
    if path.suffix in PICKLES:
        return "a pickle; supported: a folder in diffusers layout with safetensors"
    if path.is_file():
        make = f"StableDiffusionXLPipeline.from_single_file({str(path)!r}).save_pretrained('FOLDER')"
        return f"a single file; supported: a folder in diffusers layout. For an SDXL, diffusers makes one: {make}"
    if snapshots := sorted(path.glob("snapshots/*/model_index.json")):
        return f"a cache of Hugging Face's; supported: a snapshot in it, as {snapshots[-1].parent}"
    return "has no model_index.json; a folder in diffusers layout is needed"


def combined(parts: Iterable[str]) -> str:
    """One SHA-256 of several texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


cached_sha256 = functools.cache(sha256)
