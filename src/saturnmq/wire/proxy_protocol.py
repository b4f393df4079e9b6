"""HAProxy's PROXY protocol, versions 1 and 2: what a load balancer says before the client's first byte.

Source: haproxy.org/download/1.8/doc/proxy-protocol.txt.

1: `PROXY TCP4 <source> <destination> <source port> <destination port>\\r\\n`; TCP6; `PROXY UNKNOWN …\\r\\n`
2: signature 12 | version 4, command 4 | family 4, transport 4 | length 16 | addresses, ports, then what we do not read
"""

from __future__ import annotations

import ipaddress
import struct

import msgspec

from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.host import Address

PREFIX_1 = b"PROXY "
SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
#: with the line's end (section 2.1)
LONGEST_1 = 107
HEADER_2 = struct.Struct(">12sBBH")
#: of version 2; senders keep to 536 (section 2.2), their certificates and tokens may need more
LONGEST_2 = 4096
LOCAL, PROXY = 0x20, 0x21
FAMILIES = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}
#: TCP over IPv4 and over IPv6: the bytes of an address
ADDRESS_BYTES = {0x11: 4, 0x21: 16}


class Header(msgspec.Struct, frozen=True):
    """`length` bytes that come before the client's. Without addresses the connection is the load balancer's own."""

    length: int
    source: Address | None = None
    destination: Address | None = None


def read(data: bytes) -> Header | int:
    """The header that `data` begins with, length 0 where it is none; or how many bytes are needed to say more.

    Raises ProtocolError for one that is malformed.
    """
    if not data:
        return 1
    if SIGNATURE_2.startswith(data[:12]):
        return _read_2(data) if len(data) >= HEADER_2.size else HEADER_2.size
    if PREFIX_1.startswith(data[:6]):
        return _read_1(data)
    return Header(0)


def _read_1(data: bytes) -> Header | int:
    line, end, _ = data[:LONGEST_1].partition(b"\r\n")
    if not end:
        if len(data) >= LONGEST_1:
            raise ProtocolError(f"a PROXY line of more than {LONGEST_1} bytes")
        return max(len(data), len(PREFIX_1)) + 1
    length = len(line) + len(end)
    try:
        _, family, *fields = line.decode("ascii").split(" ")
        if family == "UNKNOWN":
            return Header(length)
        source, destination, source_port, destination_port = fields
        parse = FAMILIES[family]
        return Header(
            length,
            Address(str(parse(source)), _port(source_port)),
            Address(str(parse(destination)), _port(destination_port)),
        )
    except (ValueError, KeyError):
        raise ProtocolError(f"a malformed PROXY line: {line!r}") from None


def _port(text: str) -> int:
    """Raises ValueError."""
    if not text.isdigit() or int(text) > 65_535:
        raise ValueError(text)
    return int(text)


def _read_2(data: bytes) -> Header | int:
    _, command, family, size = HEADER_2.unpack_from(data)
    length: int = HEADER_2.size + size
    if command not in (LOCAL, PROXY) or length > LONGEST_2:
        raise ProtocolError(f"a PROXY header with the command {command:#x} and {size} bytes")
    if len(data) < length:
        return length
    wide = ADDRESS_BYTES.get(family, 0)
    if command == LOCAL or not wide:  # of another transport: as the specification says, the connection's own
        return Header(length)
    if size < 2 * wide + 4:
        raise ProtocolError(f"a PROXY header whose addresses do not fit in {size} bytes")
    source, destination, source_port, destination_port = struct.unpack_from(f">{wide}s{wide}sHH", data, HEADER_2.size)
    return Header(
        length,
        Address(str(ipaddress.ip_address(source)), source_port),
        Address(str(ipaddress.ip_address(destination)), destination_port),
    )
