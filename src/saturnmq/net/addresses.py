"""Which address this machine has for others, and for itself."""

from __future__ import annotations

import socket

from saturnmq.kernel.host import Address

#: a listener's host that stands for all of them, and one of them that this machine can dial
LOOPBACKS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def dialable(listener: Address) -> Address:
    """Where programs of this machine find a listener."""
    return Address(LOOPBACKS.get(listener.host, listener.host), listener.port)


def reachable_host(host: str) -> str:
    """Where other machines find a listener: an IP, the one that packets to elsewhere leave from for all of them."""
    return _outgoing_host() if host in LOOPBACKS else host


def _outgoing_host() -> str:
    """Nothing is sent. 127.0.0.1 on a machine without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: an address that is nobody's
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
