"""The JSON file in a fetched folder: which commit it is of and what each file must be, so that no network is needed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triptych_export.fetching.errors import FetchError
from triptych_export.fetching.files import HubFile
from triptych_export.published import Licence, Model

NAME = "triptych-fetch.json"
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """What a folder holds, or will when its fetch is through."""

    model: str
    repo: str
    revision: str
    licence: Licence
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def is_of(self, model: Model) -> bool:
        """Whether it is what the table asks for; a model without a pinned commit keeps the one it has."""
        return self.repo == model.repo and model.revision in (None, self.revision)

    def write(self, folder: Path) -> None:
        """Replace the folder's record, whole or not at all."""
        unfinished = folder / f".{NAME}.{os.getpid()}"
        unfinished.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", "utf-8")
        unfinished.replace(folder / NAME)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """A folder's record, None where there is none.

        Raises:
            FetchError: it cannot be read, or states paths that leave the folder.
        """
        path = folder / NAME
        try:
            document = json.loads(path.read_text("utf-8"))
            return _parse(document)
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise FetchError(f"{path}: not a record of this version ({error!r}); remove it to fetch anew") from None


def _parse(document: dict[str, Any]) -> Record:
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}; legal: {FORMAT}")
    return Record(
        str(document["model"]),
        str(document["repo"]),
        str(document["revision"]),
        Licence(**document["licence"]),
        tuple(HubFile(**file) for file in document["files"]),
    )
