"""Which address this machine has for others."""

from __future__ import annotations

import socket


def local_host() -> str:
    """The IP that packets to elsewhere leave from; nothing is sent. 127.0.0.1 on a machine without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: an address that is nobody's
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
