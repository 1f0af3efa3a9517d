"""What may be asked for as `model`: each ensemble of the server, and each preset of the configuration file."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from triptych.async_client import AsyncClient
from triptych.errors import ServerError, invalid
from triptych.patience import Patience
from triptych_contract.cards import CardError, ModelCard
from triptych_contract.errors import shown
from triptych_contract.families import FAMILIES, read_card
from triptych_contract.family import Family
from triptych_contract.parameters import File, Files

from .errors import Refusal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Seconds for which what the server said of its models holds.
FRESH_S = 10.0
# A caller is told at once that the server is away or full, and decides itself.
PATIENCE = Patience(absent_s=1, loading_s=1, full_s=0)


@dataclass(frozen=True)
class Preset:
    """A name for a model with settings that a request may change.

    Args:
        model: the ensemble; "" for the server's first.
        settings: by the contract's names.
    """

    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_presets(path: Path) -> dict[str, Preset]:
    """Read a configuration file's `[models.NAME]` tables: `model`, and settings by the contract's names.

    Raises:
        InvalidRequest: it cannot be read, or holds something else.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise invalid("config", f"{path} ({error})", "a TOML file") from None
    models = tables.pop("models", {})
    if tables or not isinstance(models, dict) or not all(isinstance(one, dict) for one in models.values()):
        raise invalid("config", f"{path}: {', '.join(tables) or 'models'}", "tables [models.NAME]")
    return {name: _preset(f"models.{name}", dict(table)) for name, table in models.items()}


def _preset(where: str, settings: dict[str, Any]) -> Preset:
    model = settings.pop("model", "")
    if not isinstance(model, str):
        raise invalid(f"{where}.model", shown(model), "a model's name")
    families = [FAMILIES[model]] if model in FAMILIES else FAMILIES.values()
    legal = {
        name
        for family in families
        for name, one in family.parameters.items()
        if not isinstance(one.kind, (File, Files)) and name not in ("prompt", "tenant")
    }
    if unknown := [name for name in settings if name not in legal]:
        raise invalid(f"{where}.{unknown[0]}", "an unknown parameter", ", ".join(sorted(legal)))
    return Preset(model, settings)


@dataclass(frozen=True)
class Model:
    """One name that may be asked for; `adapters` are those that the server has for it."""

    name: str
    ensemble: str
    family: Family
    card: ModelCard
    client: AsyncClient
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()


class Models:
    """What the server has, asked anew now and then.

    Args:
        client: `AsyncClient`'s arguments but `model`.
        timeout_s: seconds that a picture may take in all.
    """

    def __init__(self, client: Mapping[str, Any], presets: Mapping[str, Preset], timeout_s: float) -> None:
        self._options = {**client, "patience": PATIENCE, "timeout": timeout_s}
        self.client = AsyncClient(**{**self._options, "timeout": None})
        self._presets = presets
        self._clients: dict[str, AsyncClient] = {}
        self._known: dict[str, Model] = {}
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def all(self) -> Mapping[str, Model]:
        """Give every model by name, the server's own first.

        Raises:
            TriptychError: it has to be asked and does not answer.
        """
        async with self._asking:
            if time.monotonic() - self._asked_at > FRESH_S:
                self._known = self._named(await self.client.models())
                self._asked_at = time.monotonic()
        return self._known

    async def get(self, name: Any) -> Model:
        """Give the model of a name, the first for none.

        Raises:
            Refusal: there is none of that name.
        """
        models = await self.all()
        if name is None:
            return next(iter(models.values()))
        if not isinstance(name, str) or name not in models:
            words = str(invalid("model", shown(name)[:80], ", ".join(models)))
            raise Refusal(404, words, "model_not_found", param="model")
        return models[name]

    def forget(self) -> None:
        """Ask again at the next request: the server went away, and may come back as another."""
        self._asked_at = float("-inf")

    async def close(self) -> None:
        """Cancel what is in flight and disconnect."""
        clients = [*self._clients.values(), self.client]
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)

    def _named(self, described: Mapping[str, Any]) -> dict[str, Model]:
        try:
            cards = {name: read_card(one) for name, one in described.items()}
        except CardError as error:
            raise ServerError(f"the answer is not this version's ({error})") from None
        own = {
            name: Model(
                name, name, family, card, self._client(name), adapters=tuple(described[name].get("adapters", ()))
            )
            for name, (family, card) in cards.items()
        }
        for name, preset in self._presets.items():
            of = own.get(preset.model or next(iter(cards), ""))
            if of:
                own[name] = replace(of, name=name, settings=preset.settings)
        if not own:
            raise ServerError("the server has no models")
        return own

    def _client(self, ensemble: str) -> AsyncClient:
        if ensemble not in self._clients:
            self._clients[ensemble] = AsyncClient(**self._options, model=ensemble)
        return self._clients[ensemble]
