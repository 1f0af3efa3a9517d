"""Which files of a repository the exporter reads: one set of safetensors a component, and its JSON and text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from triptych_export.fetching.errors import FetchError
from triptych_export.fetching.files import HubFile
from triptych_export.published import Model

# As diffusers and transformers name them: model.fp16.safetensors, model.fp16-00001-of-00002.safetensors,
# diffusion_pytorch_model-00001-of-00002.bf16.safetensors. Other names in a component are another tool's copies.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(fp16|bf16))?(?:-\d{5}-of-\d{5})?(?:\.(fp16|bf16))?\.safetensors"
)
_SHARDS = re.compile(r".+\.index(?:\.(fp16|bf16))?\.json")
_TEXT = (".json", ".txt")
INDEX = "model_index.json"
# Half the bytes, and the exporter stores halves where that loses nothing; "" are the files without a variant.
_PREFERRED = ("fp16", "bf16", "")


def wanted(model: Model, files: Iterable[HubFile]) -> list[HubFile]:
    """The files of `model` to fetch, by path.

    Raises:
        FetchError: a part of the model is not there.
    """
    listed = {file.path: file for file in files}
    chosen = {path for part in model.components for path in _component(model, part, listed)}
    chosen |= {path for part in model.configs for path in _texts(model, part, listed)}
    if model.components != ("",):
        chosen.add(_index(model, listed))
    return [listed[path] for path in sorted(chosen)]


def _index(model: Model, listed: Mapping[str, HubFile]) -> str:
    if INDEX not in listed:
        raise FetchError(f"{model.repo}: has no {INDEX}; a repository in diffusers layout is needed")
    return INDEX


def _component(model: Model, part: str, listed: Mapping[str, HubFile]) -> Iterator[str]:
    weights = {path: _variant(match) for path in _within(part, listed) if (match := _WEIGHTS.fullmatch(_name(path)))}
    if not weights:
        raise FetchError(f"{model.repo}: {part or 'its root'} has no .safetensors; pickles are not fetched")
    variant = next(variant for variant in _PREFERRED if variant in weights.values())
    yield from (path for path, found in weights.items() if found == variant)
    for path in _texts(model, part, listed):
        shards = _SHARDS.fullmatch(_name(path))
        if not shards or (shards[1] or "") == variant:
            yield path


def _texts(model: Model, part: str, listed: Mapping[str, HubFile]) -> list[str]:
    texts = [path for path in _within(part, listed) if path.endswith(_TEXT)]
    if not texts:
        raise FetchError(f"{model.repo}: {part or 'its root'} has no {' or '.join(_TEXT)} file")
    return texts


def _within(part: str, listed: Mapping[str, HubFile]) -> list[str]:
    """Files directly in a folder."""
    return [path for path in listed if str(PurePosixPath(path).parent) == (part or ".")]


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _variant(match: re.Match[str]) -> str:
    return match[1] or match[2] or ""
