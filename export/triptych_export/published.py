"""What `triptych fetch` knows of published weights. Each family's catalogue is in its own room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Licence:
    """What a user has to accept once: its name, where it is, and what surprises people who serve."""

    name: str
    url: str
    note: str = ""


@dataclass(frozen=True)
class Model:
    """One repository of the hub.

    Attributes:
        name: what the command line calls it, and its folder.
        repo: owner/name on the hub.
        revision: the commit; None where no commit is pinned: the one that `main` has at the first fetch is kept.
        components: folders with weights; "" is the repository's root.
        configs: folders with text files only.
        licence: to be accepted before the first byte of weights.
        prior: the model that is fetched with it, unless that is turned off, and comes first in `triptych export`.
    """

    name: str
    repo: str
    revision: str | None
    components: tuple[str, ...]
    configs: tuple[str, ...]
    licence: Licence
    prior: str = ""

    @property
    def page(self) -> str:
        """The repository's page, where the terms of a gated one are accepted."""
        return f"{HUB}/{self.repo}"


@dataclass(frozen=True)
class Catalogue:
    """The published weights of one family.

    Attributes:
        models: in the order of the command line.
        exported: the arguments of `triptych export` for fetched folders, by model; "" where something is missing.
    """

    models: tuple[Model, ...]
    exported: Callable[[Mapping[str, str]], str]
