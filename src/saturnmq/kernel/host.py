"""Addresses as they stand in records and on the wire."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

import msgspec


class Address(msgspec.Struct, frozen=True, gc=False):
    """A host (IPv4, IPv6 without brackets, or a name) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """`1.2.3.4:5`, `[::1]:5` or `name:5`. Raises ValueError with the reason."""
        host, colon, port = text.strip().rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is not host:port")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not host:
            raise ValueError(f"{text!r} has no host")
        return cls(host, int(port))


@lru_cache(maxsize=4096)
def pack(address: Address) -> bytes:
    """The 8 or 20 bytes of a record's bornHost or storeHost: the IP, then the port in four bytes.

    A host that is not an IP is written as 0.0.0.0: the format has no room for a name.
    """
    try:
        packed = ipaddress.ip_address(address.host).packed
    except ValueError:
        packed = b"\0\0\0\0"
    return packed + address.port.to_bytes(4, "big")


@lru_cache(maxsize=4096)
def unpack(packed: bytes) -> Address:
    """The reverse of `pack`."""
    return Address(str(ipaddress.ip_address(packed[:-4])), int.from_bytes(packed[-4:], "big"))
