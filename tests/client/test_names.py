"""Which addresses stand for several servers."""

from __future__ import annotations

import socket

import pytest

from triptych.errors import ServerUnavailable
from triptych.transport import TritonTransport, _address, _name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("dns:///pictures:8001", ("pictures", 8001)),
        ("dns:pictures.example.org:8001", ("pictures.example.org", 8001)),
        ("dns:///[::1]:8001", ("::1", 8001)),
        ("dns://8.8.8.8/pictures:8001", None),  # asked there, which gRPC does
        ("dns:///pictures", None),
        ("dns:///pictures:http", None),
        ("pictures:8001", None),
        ("127.0.0.1:8001", None),
        ("ipv4:127.0.0.1:8001", None),
    ],
)
def test_a_dns_url_with_a_port_is_a_name(url, name):
    assert _name(url) == name


def test_what_a_proxy_finds_is_one_server(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert _name("dns:///pictures:8001") is None
    assert _name("dns:///localhost:8001") == ("localhost", 8001)


def test_addresses_are_written_as_grpc_takes_them():
    assert [_address("10.0.0.1", 8001), _address("fd00::1", 8001)] == ["ipv4:10.0.0.1:8001", "ipv6:[fd00::1]:8001"]


async def test_one_address_is_itself():
    transport = TritonTransport("127.0.0.1:1")
    assert await transport.one() is transport


async def test_servers_come_in_turn_and_one_that_was_away_is_left_out(monkeypatch):
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{k}", 1)) for k in (1, 2)],
    )
    transport = TritonTransport("dns:///pictures:1")
    first, second = [await transport.one() for _ in range(2)]
    assert first is not second
    assert [await transport.one() for _ in range(2)] == [first, second]
    with pytest.raises(ServerUnavailable):
        await first.infer("sdxl", {"prompt": "a fox"}, ["image"], timeout_s=5)
    assert {await transport.one() for _ in range(4)} == {second}
    await transport.close()


async def test_a_name_that_nobody_has_is_a_server_that_is_away(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ServerUnavailable) as error:
        await TritonTransport("dns:///pictures:1").one()
    assert error.value.nothing_accepted
