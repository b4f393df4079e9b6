"""Where the servers of a drill stand: each in a network namespace of its own, or, where those cannot be had, on
loopback behind a forwarder.

In a namespace a server that is cut off is cut off from everybody, packets of it are lost, and connections to it time
out. On loopback only what comes to it is held up.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from harness.forwarder import Forwarder

#: of a slow link: in a namespace what passes and what waits, on loopback what everything waits
SLOW_LINK = ("rate", "1mbit", "burst", "16kb", "latency", "500ms")
SLOW_S = 0.15


class Place(Protocol):
    """Of one server, and the link that leads to it."""

    #: the server is started by it
    command: tuple[str, ...]
    #: the server listens there
    host: str

    def address(self, port: int) -> str:
        """`host:port` at which the others reach this port of it."""

    def partition(self) -> None: ...

    def heal(self) -> None: ...

    def slow_down(self) -> None: ...

    def speed_up(self) -> None: ...


class Loopback:
    """`Place`s for those who may not make a network."""

    host = "127.0.0.1"

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened

    def place(self) -> Place:
        return _BehindForwarder(self._opened)


class _BehindForwarder:
    command: tuple[str, ...] = ()
    host = "127.0.0.1"

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened

    def address(self, port: int) -> str:
        self._link = self._opened.enter_context(Forwarder(f"127.0.0.1:{port}"))
        return f"127.0.0.1:{self._link.port}"

    def partition(self) -> None:
        self._link.partition()

    def heal(self) -> None:
        self._link.heal()

    def slow_down(self) -> None:
        self._link.delay_s = SLOW_S

    def speed_up(self) -> None:
        self._link.delay_s = 0


class Namespaces:
    """`Place`s on a bridge, whose own address is the host of everybody else. Owner of all that, until `opened` closes.

    Raises OSError, CalledProcessError: not root, or a kernel without them.
    """

    def __init__(self, opened: ExitStack) -> None:
        self._opened, self._places = opened, 0
        number = os.getpid()
        self._name = f"sat{number:x}"  # a device has 15 characters
        self._net = f"10.{200 + number % 50}.{number // 50 % 256}"
        self.host = f"{self._net}.1"
        self._make(("ip", "link", "del", self._name), "ip", "link", "add", self._name, "type", "bridge")
        _run("ip", "address", "add", f"{self.host}/24", "dev", self._name)
        _run("ip", "link", "set", self._name, "up")
        probe = self.place()
        probe.slow_down()
        probe.speed_up()

    def place(self) -> Place:
        self._places += 1
        space = f"{self._name}-{self._places}"
        host = f"{self._net}.{1 + self._places}"
        self._make(("ip", "netns", "del", space), "ip", "netns", "add", space)
        # what a dead server has not said yet keeps its namespace, and the link in it, for minutes
        ends = (space, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._make(("ip", "link", "del", space), "ip", "link", "add", *ends)
        _run("ip", "link", "set", space, "master", self._name, "up")
        place = _InNamespace(space, host)
        place.run("ip", "address", "add", f"{host}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            place.run("ip", "link", "set", device, "up")
        return place

    def _make(self, undo: tuple[str, ...], *command: str) -> None:
        _run(*command)
        self._opened.callback(_run, *undo)


class _InNamespace:
    def __init__(self, space: str, host: str) -> None:
        self._space, self.host = space, host
        self.command: tuple[str, ...] = ("ip", "netns", "exec", space)

    def run(self, *command: str) -> None:
        _run(*self.command, *command)

    def address(self, port: int) -> str:
        return f"{self.host}:{port}"

    def partition(self) -> None:
        _run("ip", "link", "set", self._space, "down")

    def heal(self) -> None:
        _run("ip", "link", "set", self._space, "up")

    def slow_down(self) -> None:
        self._both_ends("add", "root", "tbf", *SLOW_LINK)

    def speed_up(self) -> None:
        self._both_ends("del", "root")

    def _both_ends(self, verb: str, *queueing: str) -> None:
        for run, device in ((_run, self._space), (self.run, "eth0")):
            run("tc", "qdisc", verb, "dev", device, *queueing)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def network(opened: ExitStack, say: Callable[[str], object]) -> Namespaces | Loopback:
    """Namespaces where they can be had; says what it is."""
    try:
        namespaces = Namespaces(opened)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error).encode()).decode().strip()
        say(f"NO NETWORK NAMESPACES ({reason}): on loopback, where only what comes to a server is held up")
        return Loopback(opened)
    say(f"each server in a network namespace, {namespaces.host}/24; a slow link: tbf {' '.join(SLOW_LINK)}")
    return namespaces
