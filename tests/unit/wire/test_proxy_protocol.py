"""The PROXY protocol, with the examples of its specification."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.host import Address
from saturnmq.wire.proxy_protocol import LONGEST_1, LONGEST_2, SIGNATURE_2, Header, read

CLIENT, SERVER = Address("192.168.0.1", 56324), Address("192.168.0.11", 443)
CLIENT_6, SERVER_6 = Address("2001:db8::1", 56324), Address("::1", 65535)


def version_2(command: int, family: int, payload: bytes) -> bytes:
    return SIGNATURE_2 + struct.pack(">BBH", command, family, len(payload)) + payload


def addresses(*ends: Address) -> bytes:
    packed = b"".join(ipaddress.ip_address(end.host).packed for end in ends)
    return packed + b"".join(end.port.to_bytes(2, "big") for end in ends)


HEADERS = {
    "TCP4": (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", (CLIENT, SERVER)),
    "TCP6": (b"PROXY TCP6 2001:db8::1 ::1 56324 65535\r\n", (CLIENT_6, SERVER_6)),
    "unknown": (b"PROXY UNKNOWN\r\n", (None, None)),
    "unknown, with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", (None, None)),
    "2, IPv4": (version_2(0x21, 0x11, addresses(CLIENT, SERVER)), (CLIENT, SERVER)),
    "2, IPv6": (version_2(0x21, 0x21, addresses(CLIENT_6, SERVER_6)), (CLIENT_6, SERVER_6)),
    "2, with more": (version_2(0x21, 0x11, addresses(CLIENT, SERVER) + b"\x04\x00\x02ab"), (CLIENT, SERVER)),
    "2, a health check": (version_2(0x20, 0x00, b""), (None, None)),
    "2, a Unix socket": (version_2(0x21, 0x31, bytes(216)), (None, None)),
}


@pytest.mark.parametrize(("header", "ends"), HEADERS.values(), ids=HEADERS)
def test_headers(header: bytes, ends: tuple[Address | None, Address | None]) -> None:
    """In any pieces, whatever follows."""
    assert read(header + b"\x16\x03\x01") == Header(len(header), *ends)
    heard = 0
    while isinstance(found := read(header[:heard]), int):
        assert heard < found <= len(header)
        heard = found
    assert found == Header(len(header), *ends)


@pytest.mark.parametrize("data", [b"PRI * HTTP/2.0\r\n", b"\x16\x03\x01", b"\0\0\1\0", b"POST", b"\r\n\r\n\0\r\nX"])
def test_what_is_none(data: bytes) -> None:
    assert read(data) == Header(0)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 65536\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 +1\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY \xff\r\n",
        b"PROXY " + b"x" * LONGEST_1,
        version_2(0x11, 0x11, addresses(CLIENT, SERVER)),
        version_2(0x22, 0x11, addresses(CLIENT, SERVER)),
        version_2(0x21, 0x11, addresses(CLIENT, SERVER)[:-1]),
        version_2(0x21, 0x21, addresses(CLIENT, SERVER)),
        version_2(0x21, 0x11, bytes(LONGEST_2)),
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(data)


@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE_2, SIGNATURE_2 + b"\x21\x11"]), st.binary(max_size=60)
)
def test_anything(start: bytes, data: bytes) -> None:
    try:
        found = read(start + data)
    except ProtocolError:
        return
    assert isinstance(found, Header) or found > len(start + data)
