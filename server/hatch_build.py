"""Hatch's hook for the rooms beside this folder."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Rooms(BuildHookInterface[Any]):
    """Copies what `include` of the hook's table names into a wheel.

    Hatch's own `force-include` would also copy it into an editable installation, where it hides the checkout.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the folders to copy; an editable installation finds them in `dev-mode-dirs`."""
        if version != "editable":
            build_data["force_include"].update(self.config["include"])
