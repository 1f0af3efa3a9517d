"""What a family does with a request, behind one interface: the models that Triton runs know no family by name."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from triptych_contract.cards import ModelCard, TableCard
from triptych_contract.family import Family
from triptych_contract.settings import Settings

from .denoiser import Floats
from .encoded import Read
from .manifest import Manifest
from .phase import Outline, Phase
from .tables import SamplerTables, load_tables
from .tokenizers import PromptTokenizer

AnySettings = TypeVar("AnySettings", bound=Settings)
AnyCard = TypeVar("AnyCard", bound=ModelCard)


class Pipeline(ABC, Generic[AnySettings, AnyCard]):
    """One served model. Everything that a request's family decides is asked of it."""

    family: ClassVar[Family]

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.card = manifest, cast(AnyCard, manifest.model)
        self.tables = functools.cache(self._load)

    def parse(self, given: Mapping[str, Any]) -> AnySettings:
        """Check and complete inputs (by name; absent = default), or settings as another model passed them on.

        Raises:
            InvalidRequest: has all problems, each with field, what was given and what is legal.
        """
        return cast(AnySettings, self.family.settings.parse(given, self.card))

    def resolved(self, settings: AnySettings) -> AnySettings:
        """Settings in which what a request only names, in a folder of the server's, is told by content.

        Raises:
            InvalidRequest: it names something that is not there.
        """
        return settings

    def soon(self, _settings: AnySettings) -> bool:
        """Whether `resolved` takes milliseconds only."""
        return True

    def described(self) -> dict[str, Any]:
        """What `describe` tells beside the card: what is in folders of the server's now."""
        return {}

    @abstractmethod
    def encoder_inputs(self, settings: AnySettings, tokenizers: Sequence[PromptTokenizer]) -> dict[str, NDArray[Any]]:
        """What the text encoders read, each (rows, …): the negative prompt's row first where guidance is on.

        Raises:
            InvalidRequest: the build cannot read such prompts.
        """

    def cut(self, settings: AnySettings, tokenizers: Sequence[PromptTokenizer]) -> dict[str, str]:
        """What the longest-reading encoder does not see of each prompt, for the receipt."""
        prompts = {"prompt": settings.prompt, "negative_prompt": settings.negative_prompt or ""}
        cut = {
            name: min((self.unread(settings, tokenizer, text) for tokenizer in tokenizers), key=len)
            for name, text in prompts.items()
        }
        return {name: words for name, words in cut.items() if words}

    def unread(self, _settings: AnySettings, tokenizer: PromptTokenizer, prompt: str) -> str:
        """The words of a prompt that do not fit."""
        return tokenizer.cut(prompt)

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

    def lays_over(self, _settings: AnySettings) -> bool:
        """Whether `finished` does something, which may take long."""
        return False

    def finished(
        self, _settings: AnySettings, painted: NDArray[np.uint8], _read: Callable[[str], bytes]
    ) -> NDArray[np.uint8]:
        """The picture of what the decoder painted, (height, width, 3); `read` gives the files that it was made from.

        Raises:
            InvalidRequest: they are others than the settings speak of.
        """
        return painted

    def nothing(self) -> Floats:
        """The smallest latents, (C, h, w), for a decoder to be done with at once."""
        sizes = self.card.smallest_sizes
        return np.zeros((self.card.latent_channels, sizes["latent_height"], sizes["latent_width"]), np.float32)

    def _load(self, card: TableCard) -> SamplerTables:
        return load_tables(self.manifest.verified(card.path))
