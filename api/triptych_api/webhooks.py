"""Telling a caller's own server that a job ended: signed, tried again, and never inside this network."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

from triptych.errors import InvalidRequest, invalid
from triptych_contract.errors import shown

from .metrics import Metrics
from .store import Job, Store

# Seconds after a try that failed until the next; after the last it is given up, two hours in all.
BACK_OFF_S = (5, 30, 120, 600, 1800, 4500)
TIMEOUT_S = 15.0
AT_ONCE = 8
# How often to look for what a front that is gone has left, in seconds.
LOOK_S = 30.0
LEGAL = "an object with url, https://…, and secret, a text of 16 … 256 characters"


def webhook(value: Any) -> dict[str, str] | None:
    """Read a body's `webhook`.

    Raises:
        InvalidRequest: it is none.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"url", "secret"}:
        raise invalid("webhook", shown(value)[:60], LEGAL)
    url, secret = value["url"], value["secret"]
    if not isinstance(secret, str) or not 16 <= len(secret) <= 256 or not secret.isascii():
        raise invalid("webhook.secret", "something else", LEGAL)  # which is not told: it is a secret
    if not isinstance(url, str) or len(url) > 2048 or not url.isascii() or not url.isprintable():
        raise invalid("webhook.url", shown(url)[:60], LEGAL)
    return {"url": url, "secret": secret}


async def resolved(url: str, *, private: bool) -> str:
    """Give the address to connect to for a URL, once every address of its host was checked.

    Args:
        private: whether loopback, private networks and plain HTTP may be.

    Raises:
        InvalidRequest: it is no such URL, its host is not known, or is where webhooks may not go.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        raise invalid("webhook.url", url[:60], LEGAL) from None
    if parts.scheme not in (("https", "http") if private else ("https",)) or not host or "@" in parts.netloc:
        raise invalid("webhook.url", url[:60], LEGAL)
    try:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise invalid("webhook.url", f"{host[:60]}, a host that is not known ({error})", LEGAL) from None
    addresses = [str(entry[4][0]) for entry in found]
    if not private and not all(map(_public, addresses)):
        raise invalid("webhook.url", f"{host[:60]}, an address of a private network", "an address of the internet")
    return addresses[0]


def _public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = [getattr(ip, name, None) for name in ("ipv4_mapped", "sixtofour")]
    return all(one.is_global and not one.is_multicast for one in (ip, *filter(None, inner)))


def signed(secret: str, id: str, body: bytes, now: int) -> dict[str, str]:
    """Give the headers of Standard Webhooks: `v1,` and HMAC-SHA256 of `<id>.<timestamp>.<body>` in base64."""
    key = secret.encode()
    if secret.startswith("whsec_"):
        with contextlib.suppress(binascii.Error, ValueError):
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    mac = hmac.new(key, f"{id}.{now}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(mac).decode()}"
    return {"webhook-id": id, "webhook-timestamp": str(now), "webhook-signature": signature}


class Webhooks:
    """Sends what is due; it is the store's, so that a restart loses none.

    Args:
        ask: calls the store.
        told: writes what is sent of a job.
        private: as `resolved` has it.
    """

    def __init__(
        self,
        ask: Callable[..., Awaitable[Any]],
        store: Store,
        metrics: Metrics,
        told: Callable[[Job], Mapping[str, Any]],
        *,
        private: bool,
    ) -> None:
        self._ask, self._store, self._metrics, self._told, self.private = ask, store, metrics, told, private
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look at once: something is due."""
        self._woken.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client:
            while True:
                self._woken.clear()
                due = await self._ask(self._store.due, time.time(), AT_ONCE)
                await asyncio.gather(*(self._tell(client, job) for job in due))
                following = await self._ask(self._store.next_due)
                left = LOOK_S if following is None else max(0.0, following - time.time())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), min(LOOK_S, left))

    async def _tell(self, client: httpx2.AsyncClient, job: Job) -> None:
        done = await self._sent(client, job)
        self._metrics.webhooks.labels("sent" if done else "failed").inc()
        again = not done and job.tries < len(BACK_OFF_S)
        due = time.time() + BACK_OFF_S[job.tries] if again else None
        await self._ask(self._store.told, job.id, due, job.tries + 1)

    async def _sent(self, client: httpx2.AsyncClient, job: Job) -> bool:
        asked = json.loads(job.webhook or "{}")
        body = json.dumps({"type": f"job.{job.status}", "data": self._told(job)}).encode()
        try:
            address = await resolved(asked["url"], private=self.private)
            # To the address that was checked: a name could lead elsewhere by now.
            url = httpx2.URL(asked["url"])
            headers = {"host": url.netloc.decode(), "content-type": "application/json"}
            answer = await client.post(
                url.copy_with(host=address),
                content=body,
                headers={**headers, **signed(asked["secret"], job.id, body, int(time.time()))},
                extensions={"sni_hostname": url.host},
            )
        except (InvalidRequest, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError):
            return False
        return answer.is_success
