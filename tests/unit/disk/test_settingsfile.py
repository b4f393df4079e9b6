import errno

import pytest

from saturnmq.disk.settingsfile import SettingsFile
from saturnmq.disk.simulated import Operation, SimulatedDisk


def test_a_change_is_on_disk_when_it_returns() -> None:
    disk = SimulatedDisk()
    SettingsFile(disk, "namesrv.conf").change({"orderMessageEnable": "true"})
    assert disk.read_file("namesrv.conf") == b"orderMessageEnable=true\n"
    disk.replace_file("namesrv.conf", b"# caf\xe9\norderMessageEnable = true\n")
    SettingsFile(disk, "namesrv.conf").change({"orderMessageEnable": "false"})
    assert disk.read_file("namesrv.conf") == b"# caf\xe9\norderMessageEnable=false\n"


def test_a_file_that_cannot_be_written_is_as_it_was() -> None:
    disk = SimulatedDisk()
    disk.replace_file("namesrv.conf", b"a=b\n")
    disk.faults[Operation.SYNC, "namesrv.conf"] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        SettingsFile(disk, "namesrv.conf").change({"a": "c"})
    assert disk.read_file("namesrv.conf") == b"a=b\n"
