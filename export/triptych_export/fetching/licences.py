"""Which licences the user has accepted, by model and revision, in the configuration folder."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from triptych_export.fetching.record import Record


def config_folder() -> Path:
    """`$XDG_CONFIG_HOME/triptych`, by default `~/.config/triptych`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "triptych"


@dataclass(frozen=True)
class Licences:
    """The accepted ones, in one JSON file."""

    path: Path

    @classmethod
    def of_user(cls) -> Licences:
        """Those of whoever runs this."""
        return cls(config_folder() / "licences.json")

    def accepted(self, record: Record) -> bool:
        """Whether this licence was accepted for this model at this revision."""
        return self._read().get(_key(record), {}).get("name") == record.licence.name

    def accept(self, record: Record) -> None:
        """Remember it."""
        entry = {
            "name": record.licence.name,
            "url": record.licence.url,
            "accepted": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps({**self._read(), _key(record): entry}, indent=1) + "\n", "utf-8")
        unfinished.replace(self.path)

    def _read(self) -> dict[str, dict[str, str]]:
        """A file that is not ours to read counts as nothing accepted: the user is asked again."""
        try:
            document = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        entries = document if isinstance(document, dict) else {}
        return {str(key): entry for key, entry in entries.items() if isinstance(entry, dict)}


def _key(record: Record) -> str:
    return f"{record.repo}@{record.revision}"
