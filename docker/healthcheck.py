"""Exit 0 while the server's loop answers, else 1: for a container's health check or a liveness probe.

Triton's own `/v2/health/ready` goes on saying yes when the loop's process has died or hangs, so this asks the loop for its
`stats`, which it answers between two steps. Only the standard library, since a probe's imports cost the server's CPUs.

The environment may set TRIPTYCH_HEALTH_URL and TRIPTYCH_HEALTH_TIMEOUT, in seconds. A step that takes longer than that looks
like a hang, and so does the verb `verify`.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from urllib.parse import urlsplit

URL = os.environ.get("TRIPTYCH_HEALTH_URL", "http://127.0.0.1:8000")
TIMEOUT_S = float(os.environ.get("TRIPTYCH_HEALTH_TIMEOUT", "4"))
QUESTION = {
    "inputs": [{"name": "action", "datatype": "BYTES", "shape": [1], "data": ["stats"]}],
    "outputs": [{"name": "report"}],
}


def stats(url: str, timeout_s: float) -> dict[str, float]:
    """The loop's figures.

    Raises:
        OSError, http.client.HTTPException: nobody answers, or not in time.
        ValueError: the answer is not the loop's.
    """
    deadline = time.monotonic() + timeout_s
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=timeout_s)
    try:
        connection.connect()
        connection.sock.settimeout(max(0.1, deadline - time.monotonic()))  # one limit for both, not one each
        connection.request("POST", "/v2/models/denoise/infer", json.dumps(QUESTION))
        response = connection.getresponse()
        return _report(response.status, response.read())
    finally:
        connection.close()


def _report(status: int, body: bytes) -> dict[str, float]:
    if status != 200:
        raise ValueError(f"HTTP {status}: {body[:200].decode(errors='replace')}")
    try:
        figures = json.loads(json.loads(body)["outputs"][0]["data"][0])
        return {name: float(figures[name]) for name in ("waiting", "running", "batches_total")}
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not the loop's answer: {error!r}") from None


def main() -> int:
    try:
        found = stats(URL, TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError) as error:
        sys.stderr.write(f"{URL}: {error or type(error).__name__}\n")
        return 1
    sys.stdout.write(", ".join(f"{name} {value:g}" for name, value in found.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
