"""What sets the families of models apart, behind one interface: the models that Triton runs know no family by name."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from .cards import ModelCard, TableCard
from .denoiser import Floats
from .encoded import Read
from .errors import InvalidRequest
from .manifest import Manifest
from .phase import Outline, Phase
from .pictures import Picture
from .settings import Settings
from .tables import SamplerTables, load_tables
from .tokenizers import PromptTokenizer

AnySettings = TypeVar("AnySettings", bound=Settings)
AnyCard = TypeVar("AnyCard", bound=ModelCard)


class Family(ABC, Generic[AnySettings, AnyCard]):
    """One served model. Everything that a request's family decides is asked of it."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.card = manifest, cast(AnyCard, manifest.model)
        self.tables = functools.cache(self._load)

    @abstractmethod
    def parse(self, given: Mapping[str, Any]) -> AnySettings:
        """Check raw inputs (bytes, int, float, bool, pairs, pictures by name; absent = default).

        Raises:
            InvalidRequest: names the field, what was given and what is legal.
        """

    @abstractmethod
    def encoder_inputs(
        self, settings: AnySettings, tokenizers: Sequence[PromptTokenizer]
    ) -> dict[str, NDArray[np.int64]]:
        """What the text encoders read, each (rows, …): the negative prompt's row first where guidance is on."""

    @abstractmethod
    def outline(self, settings: AnySettings) -> list[Outline]:
        """What each phase will do, without what it does it to.

        Raises:
            InvalidRequest: the settings leave a model without a step.
        """

    @abstractmethod
    def phases(self, settings: AnySettings, read: Read) -> list[Phase]:
        """What the loop does for a request; `read` gives the encoders' outputs by name.

        Raises:
            InvalidRequest: the settings leave a model without a step, or an output is missing or misshapen.
        """

    @abstractmethod
    def unused_stages(self, settings: AnySettings) -> set[str]:
        """The stages that a request does not run."""

    @abstractmethod
    def a1111_fields(self, made_by: Mapping[str, Any]) -> dict[str, Any]:
        """A receipt's settings in A1111's words; None for what does not apply."""

    def read_settings(self, document: Any) -> AnySettings:
        """Settings as another model passed them on; checked again, since anybody can reach every model.

        Raises:
            InvalidRequest: the document is not what `Settings.to_json` makes.
        """
        try:
            return self.parse({name: _raw(value) for name, value in document.items() if value is not None})
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidRequest("settings", f"a malformed document ({error})", "what `tokenizer` passes on") from None

    def nothing(self) -> Floats:
        """The smallest latents, (C, h, w), for a decoder to be done with at once."""
        sizes = self.card.smallest_sizes
        return np.zeros((self.card.latent_channels, sizes["latent_height"], sizes["latent_width"]), np.float32)

    def _load(self, card: TableCard) -> SamplerTables:
        return load_tables(self.manifest.verified(card.path))


def _raw(value: Any) -> Any:
    """A value of `to_json` as `parse` takes it."""
    if isinstance(value, dict):
        return Picture(**value)
    return value.encode() if isinstance(value, str) else value


def family(manifest: Manifest) -> Family[Any, Any]:
    """The family of a build."""
    from .cascade.family import StableCascade
    from .sdxl.family import Sdxl

    families: dict[str, type[Family[Any, Any]]] = {"sdxl": Sdxl, "stable_cascade": StableCascade}
    return families[manifest.family](manifest)
