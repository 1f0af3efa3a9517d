"""Where webhooks may go, whatever a name leads to."""

from __future__ import annotations

import socket

import pytest

from triptych import InvalidRequest
from triptych_api.webhooks import resolved, signed, webhook

PUBLIC = "93.184.215.14"


@pytest.fixture
def names(monkeypatch):
    """What a name leads to."""
    found = {}

    def lookup(host, port, *_, **__):
        addresses = found.get(host, [host])
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return found


async def test_the_checked_address_is_given(names):
    names["example.org"] = [PUBLIC]
    assert await resolved("https://example.org/hook", private=False) == PUBLIC


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *(
            "::1",
            "::",
            "fe80::1",
            "fe80::1%eth0",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "2002:7f00:1::",
        ),
        "255.255.255.255",
    ],
)
async def test_nothing_goes_inside(names, address):
    names["example.org"] = [PUBLIC, address]  # one of several is enough
    with pytest.raises(InvalidRequest, match="private network"):
        await resolved("https://example.org/", private=False)
    assert await resolved("https://example.org/", private=True) == PUBLIC


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "ftp://example.org",
        "https://",
        "https://a@example.org",
        "https://[",
        "x",
        "https://h:99999",
    ],
)
@pytest.mark.usefixtures("names")
async def test_only_https_goes_outside(url):
    with pytest.raises(InvalidRequest, match=r"webhook\.url"):
        await resolved(url, private=False)


async def test_a_name_that_nobody_has_is_told(monkeypatch):
    def nobody(*_, **__):
        raise socket.gaierror("not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(InvalidRequest, match="not known"):
        await resolved("https://none.example", private=False)


URL, KEY = "https://example.org", "x" * 16


@pytest.mark.parametrize(
    "value",
    [3, [], {}, {"url": URL}, {"url": 3, "secret": KEY}, {"url": URL, "secret": "é" * 16}, {"url": "é", "secret": KEY}],
)
def test_another_webhook_is_none(value):
    with pytest.raises(InvalidRequest, match="webhook"):
        webhook(value)


def test_signatures_are_those_of_standard_webhooks():
    """Of the specification's own example."""
    headers = signed(
        "whsec_plJ3nmyCDGBKInavdOK15jsl",
        "msg_loFOjxBNrRLzqYUf",
        b'{"event_type":"ping","data":{"success":true}}',
        1731705121,
    )
    assert headers["webhook-signature"] == "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="
