"""What a served model can do: the cards in a manifest. All of it comes from the exported folder's configs. Sizes in pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, TypeVar

AnyCard = TypeVar("AnyCard", bound="ModelCard")


class CardError(Exception):
    """A card is of another version of Triptych."""


@dataclass(frozen=True)
class TokenizerCard:
    """One tokenizer file and how prompts are padded: `max_length` tokens with `pad_id`.

    `multi_vector` is the file of words that stand for several tokens, where there are any.
    """

    path: str
    max_length: int
    pad_id: int
    pad_token: str
    multi_vector: str | None = None


@dataclass(frozen=True)
class TableCard:
    """One file of sampler tables: 1 … `max_steps` steps; `inpaint` says whether its rows hold where a mask is blended in."""

    path: str
    max_steps: int
    inpaint: bool


@dataclass(frozen=True)
class PreviewCard:
    """A linear map from latents to pixels: each latent x (C values) is drawn as `patch`² pixels, weightsᵀ·x + bias in 0 … 1.

    `weights` has C rows of 3·`patch`² numbers and `bias` as many, by row, column and colour.
    """

    patch: int
    weights: Sequence[Sequence[float]]
    bias: Sequence[float]


@dataclass(frozen=True)
class ModelCard(ABC):
    """What the families have in common. `latent_channels` are what pictures are decoded from; `previews` are by stage."""

    denoisers: ClassVar[tuple[str, ...]]  # the stages that the loop runs

    name: str
    latent_channels: int
    min_size: int
    max_size: int
    default_height: int
    default_width: int
    default_num_inference_steps: int
    tokenizers: tuple[TokenizerCard, ...]
    previews: Mapping[str, PreviewCard]

    @property
    def default_sizes(self) -> dict[str, int]:
        """The named dimensions of the stages' tensors at the model's own size, one image."""
        return self.sizes(self.default_height, self.default_width)

    @property
    def smallest_sizes(self) -> dict[str, int]:
        """The same at the smallest legal size."""
        return self.sizes(self.min_size, self.min_size)

    @property
    def largest_sizes(self) -> dict[str, int]:
        """The same at the largest legal size."""
        return self.sizes(self.max_size, self.max_size)

    @property
    def more_stages(self) -> tuple[str, ...]:
        """The stages of this model that others of its family may lack."""
        return ()

    @property
    def told(self) -> dict[str, Any]:
        """What receipts say of the weights, beside their hashes."""
        return {}

    @abstractmethod
    def sizes(self, height: int, width: int) -> dict[str, int]:
        """The named dimensions of the stages' tensors for one image of this size."""

    @classmethod
    def from_json(cls: type[AnyCard], card: Mapping[str, Any]) -> AnyCard:
        """A card as `dataclasses.asdict` wrote it; an older one lacks what has a default.

        Raises:
            CardError: it has other fields.
        """
        known = {field.name: field.default for field in fields(cls)}
        if wrong := (set(card) - known.keys()) | {n for n in known.keys() - set(card) if known[n] is MISSING}:
            raise CardError(f"model card and this version of Triptych differ in {sorted(wrong)}")
        return cls(**{**card, **cls._nested(card)})

    @classmethod
    def _nested(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "tokenizers": tuple(TokenizerCard(**tokenizer) for tokenizer in card["tokenizers"]),
            "previews": {stage: PreviewCard(**preview) for stage, preview in card["previews"].items()},
        }
