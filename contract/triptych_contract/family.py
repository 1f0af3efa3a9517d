"""What sets the families of models apart, as data: one record each. Whoever needs to know more of a family asks its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .cards import ModelCard

if TYPE_CHECKING:
    from .parameters import Parameter
    from .settings import Settings


@dataclass(frozen=True, eq=False, repr=False)
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


@dataclass(frozen=True, eq=False, repr=False)
class Family:
    """One family of models.

    Args:
        name: of the family in manifests, of its ensemble, of its demo model.
        title: what people call it.
        hints: the name of the client's TypedDict of its inputs.
        card: what its models can do.
        load_settings: gives the class of what its requests hold; called at its first use, since a process that only runs a
            stage does without.
        models: Triton models beside the ensemble that people wrote, and the folder that has each one's code.
        encoders: stages that turn tokens into what the denoisers read.
        decoder: the stage that turns latents into pixels.
        variants: of a model, the ways that forms offer.
        staged: whether a request with these inputs runs more than one denoiser.
        stages: what people call its denoisers.
        samplers: of a model, what it can sample with.
        mixed: of a model, what sets the k-th of n requests apart that have as little in common as it allows.
        called: the name of one of those.
        adapted: stages that adapters change, and the stage of a build for adapters that runs in their place.
        prompted: stages, and the stage of a build for image prompts that runs beside each, in the same process.
        first_held: settings that its receipts have held from the first version on; empty where that is all of them.
    """

    name: str
    title: str
    hints: str
    card: type[ModelCard]
    load_settings: Callable[[], type[Settings]]
    models: Mapping[str, str]
    encoders: tuple[str, ...]
    decoder: str
    variants: Callable[[Any], tuple[Variant, ...]]
    staged: Callable[[Mapping[str, Any]], bool]
    stages: Mapping[str, str]
    samplers: Callable[[Any], Samplers]
    mixed: Callable[[int, int, Any], dict[str, Any]]
    called: Callable[[Mapping[str, Any]], str]
    adapted: Mapping[str, str] = field(default_factory=dict)
    prompted: Mapping[str, str] = field(default_factory=dict)
    first_held: tuple[str, ...] = ()

    @cached_property
    def settings(self) -> type[Settings]:
        """What its requests hold."""
        return self.load_settings()

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The inputs of its requests by name, in the contract's order."""
        from .settings import parameters

        return parameters(self.settings)

    @property
    def remembered(self) -> tuple[str, ...]:
        """The inputs that a picture depends on, which receipts hold."""
        return tuple(name for name, one in self.parameters.items() if not one.delivery)

    @property
    def always(self) -> tuple[str, ...]:
        """The settings that every receipt of it holds."""
        return self.first_held or self.remembered
