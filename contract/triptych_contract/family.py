"""What sets the families of models apart, as data: one record each. Whoever needs to know more of a family asks its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .cards import ModelCard
from .parameters import Parameter
from .settings import Settings, parameters


@dataclass(frozen=True)
class Variant:
    """A way to use one model that a form offers by itself, such as a base with its refiner.

    Args:
        key: its name after the ensemble's, "" for the plain one.
        title: what people read.
        parameters: the inputs that it has, by name.
        defaults: values that a form begins with where the parameter has no default of its own.
    """

    key: str
    title: str
    parameters: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)


class Samplers(NamedTuple):
    """What a model can sample with: as JSON, and as lines for people."""

    facts: Mapping[str, Any]
    lines: Sequence[str]


@dataclass(frozen=True)
class Family:
    """One family of models.

    Args:
        name: of the family in manifests, of its ensemble, of its demo model.
        title: what people call it.
        hints: the name of the client's TypedDict of its inputs.
        card, settings: what its models can do; what its requests hold.
        models: Triton models beside the ensemble that people wrote, and the folder that has each one's code.
        encoders: stages that turn tokens into what the denoisers read.
        decoder: the stage that turns latents into pixels.
        always: settings that its receipts have held from the first version on.
        variants: of a model, the ways that forms offer.
        staged: whether a request with these inputs runs more than one denoiser.
        stages: what people call its denoisers.
        samplers: of a model, what it can sample with.
        mixed: of a model, what sets the k-th of n requests apart that have as little in common as it allows.
        called: the name of one of those.
    """

    name: str
    title: str
    hints: str
    card: type[ModelCard]
    settings: type[Settings]
    models: Mapping[str, str]
    encoders: tuple[str, ...]
    decoder: str
    variants: Callable[[Any], tuple[Variant, ...]]
    staged: Callable[[Mapping[str, Any]], bool]
    stages: Mapping[str, str]
    samplers: Callable[[Any], Samplers]
    mixed: Callable[[int, int, Any], dict[str, Any]]
    called: Callable[[Mapping[str, Any]], str]
    always: tuple[str, ...] = ()

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The inputs of its requests by name, in the contract's order."""
        return parameters(self.settings)

    @property
    def remembered(self) -> tuple[str, ...]:
        """The inputs that a picture depends on, which receipts hold."""
        return tuple(name for name, one in self.parameters.items() if not one.delivery)
