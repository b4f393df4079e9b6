"""What the tests of this directory stand on: small disks to fill and to break, and servers.

The disks need root and the right to mount. A test that cannot have one fails: nothing here is skipped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from long_disks import SmallDisk

from saturnmq.testing.server import LocalServer, ServerProcess


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Mounts a disk of so many megabytes."""
    disks: list[SmallDisk] = []

    def make(megabytes: int) -> SmallDisk:
        path = tmp_path / "disk"
        path.mkdir()
        disk = SmallDisk(path, tmp_path / "image" if request.param == "ext4" else None)
        try:
            disk.mount(megabytes)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.fail(f"NOT TESTED, a {request.param} cannot be mounted here: {error}")
        disks.append(disk)
        return disk

    yield make
    for disk in disks:
        disk.unmount()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[..., LocalServer]]:
    """Starts servers; those that still run at the end are killed."""
    started: list[ServerProcess] = []

    def start(data_dir: Path, *settings: str, arguments: Sequence[str] = (), **options: Any) -> LocalServer:
        home = tmp_path / f"home{len(started)}"
        home.mkdir()
        home.chmod(0o777)
        given = [f"--set={setting}" for setting in settings]
        server = LocalServer(*given, *arguments, data_dir=data_dir, home=home, **options)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        if server.running:
            server.kill()
