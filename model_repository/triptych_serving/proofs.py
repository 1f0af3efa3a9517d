"""Codes that show where what passes between the models of one server comes from, under a key that only its processes have.

Whoever reaches a model of an ensemble may call it with anything. So documents are signed, and each row that a stage makes has
a code over its maker, what that had read, and the row's bytes: what a question's file is made of is the question's own.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triptych_contract.errors import invalid

if TYPE_CHECKING:  # whoever only puts a repository together needs no arrays
    from numpy.typing import NDArray

KEY = "TRIPTYCH_RUN_KEY"  # hex, from `triptych serve`; without it codes only tell of mistakes
PROOF = "proof"  # a model's output of codes, (rows, its other outputs, CODE_BYTES) uint8
CODE_BYTES = 16
MOST_CODES = 8  # of a row; no model has more outputs
# Models' parameters: by family, who makes what they read; for each encoder, which tensors of the first model it reads.
MADE_BY, READ_BY = "made_by.", "read_by"
LEGAL = "what the ensemble passes on"
_DIGITS = 2 * CODE_BYTES


class Proofs:
    """HMAC-SHA256, cut to 128 bits."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of_server(cls, environment: Mapping[str, str] = os.environ) -> Proofs:
        """Take the key that all models of a server share."""
        return cls(bytes.fromhex(environment.get(KEY, "")))

    def signed(self, name: str, document: Mapping[str, Any]) -> bytes:
        """Write the document that passes on as `name`."""
        text = json.dumps(document).encode()
        return self._code(name, text).hex().encode() + text

    def document(self, name: str, data: bytes) -> dict[str, Any]:
        """Read what `signed` wrote.

        Raises:
            InvalidRequest: somebody else wrote it.
        """
        code, text = data[:_DIGITS], data[_DIGITS:]
        if not hmac.compare_digest(self._code(name, text).hex().encode(), code):
            raise invalid(name, "something else", LEGAL)
        document: dict[str, Any] = json.loads(text)
        return document

    def of(self, data: bytes) -> str:
        """Say what a model reads that reads a document."""
        return self._code("", data).hex()

    def read(self, *arrays: NDArray[Any]) -> list[str]:
        """Say what a model reads, row by row of all its inputs together."""
        rows = zip(*arrays, strict=True)
        return ["".join(self._of_row("", row).hex() for row in together) for together in rows]

    def made(self, maker: str, read: Sequence[str], arrays: Sequence[NDArray[Any]]) -> list[list[bytes]]:
        """Give the codes of what a model has made, for each row one of every array."""
        return [[self._of_row(f"{maker} {of}", array[row]) for array in arrays] for row, of in enumerate(read)]

    def check(self, name: str, array: NDArray[Any], maker: str, read: Sequence[str], proof: Any) -> None:
        """Check that `maker` made `array` of what it `read`; `proof` are the codes that came along, None if nothing.

        Raises:
            InvalidRequest: it did not.
        """
        if proof is None or not len(proof) == len(array) == len(read) or proof.shape[1] > MOST_CODES:
            raise invalid(name, "something else", LEGAL)
        for of, row, codes in zip(read, array, proof, strict=True):
            if self._of_row(f"{maker} {of}", row) not in map(bytes, codes):
                raise invalid(name, "something else", LEGAL)

    def _of_row(self, words: str, row: NDArray[Any]) -> bytes:
        if row.dtype.hasobject:  # texts, as Triton gives them
            return self._code(f"{words} {row.dtype.str} {[len(text) for text in row.flat]}", b"".join(row.flat))
        return self._code(f"{words} {row.dtype.str} {row.shape}", row.data if row.flags.c_contiguous else row.tobytes())

    def _code(self, words: str, data: bytes | memoryview) -> bytes:
        return hmac.digest(self._key, b"".join((words.encode(), b"\n", data)), "sha256")[:CODE_BYTES]
