"""A start that fails says why in one line, and leaves nothing open: warnings of open sockets fail the test."""

import gc
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from saturnmq.daemons.life import live, run
from saturnmq.daemons.options import Options
from saturnmq.daemons.processes import DAEMONS, StartError
from saturnmq.disk.real import RealDisk
from saturnmq.kernel.configfile import IllegalConfig
from saturnmq.store.results import StoreRefused

FREE = dict.fromkeys(("namesrv", "broker", "proxy_remoting", "grpc", "http"), 0)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """Where the failed server kept its messages; nobody holds it after the test."""
    yield tmp_path / "data"
    gc.collect()
    if (tmp_path / "data").is_dir():
        RealDisk(str(tmp_path / "data")).lock("lock").close()


def fail(
    data_dir: Path,
    says: str,
    command: str = "local",
    error: type[Exception] = StartError,
    ports: Mapping[str, int | None] = FREE,
    **options: object,
) -> None:
    with pytest.raises(error, match=says):
        run(live(DAEMONS[command], Options(data_dir=data_dir, ports=ports, **options)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "listener"), [*(("local", name) for name in FREE), ("broker", "broker"), ("broker", "http")]
)
def test_a_port_that_is_taken(data_dir: Path, command: str, listener: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flag = f"--{listener.replace('_', '-')}-port"
        says = (
            f"cannot listen on 127.0.0.1:{port} for {listener}: Address already in use; stop what uses it, or .*{flag}"
        )
        fail(data_dir, says, command, ports={**FREE, listener: port}, settings=["namesrvAddr=127.0.0.1:1"])


def test_a_host_that_is_elsewhere(data_dir: Path) -> None:
    fail(data_dir, r"192\.0\.2\.1:0 for http: .*; --host takes an address of this machine", host="192.0.2.1")


def file(path: Path) -> None:
    path.write_text("a file")


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file")


@pytest.mark.parametrize("make", [file, below_a_file])
def test_a_data_directory_that_is_none(tmp_path: Path, make: Callable[[Path], None]) -> None:
    data_dir = tmp_path / "home" / "data"
    data_dir.parent.mkdir()
    make(data_dir)
    fail(data_dir, f"the data directory {data_dir} cannot be used: .*(File exists|Not a directory)")


def test_a_store_that_another_server_has(data_dir: Path) -> None:
    lock = RealDisk(str(data_dir)).lock("lock")
    fail(data_dir, "another broker uses this store; stop it first", error=StoreRefused)
    lock.close()


def test_a_rocksdb_store(data_dir: Path) -> None:
    (data_dir / "consumequeue").mkdir(parents=True)
    (data_dir / "consumequeue" / "CURRENT").touch()
    fail(data_dir, "RocksDB store", error=StoreRefused)


def test_a_file_of_the_broker_that_is_broken(data_dir: Path) -> None:
    (data_dir / "config").mkdir(parents=True)
    (data_dir / "config" / "topics.json").write_text("{")
    fail(data_dir, r"config/topics\.json")


def test_a_certificate_that_is_not_there(data_dir: Path) -> None:
    fail(data_dir, r"/nowhere\.pem cannot be used: .*No such file", settings=["tlsCertPath=/nowhere.pem"])


@pytest.mark.parametrize(
    ("command", "setting", "says"),
    [
        ("local", "advertise=mq.example", "advertise = 'mq.example' cannot be used"),
        ("local", "flushDiskType=FSYNC", "flushDiskType = 'FSYNC' cannot be used: it takes SYNC_FLUSH or ASYNC_FLUSH"),
        ("broker", "namesrvAddr=localhost", "namesrvAddr = 'localhost' cannot be used: .* is not host:port"),
        ("broker", "namesrvAddr=;", "no NameServer is named: use -n host:port"),
    ],
)
def test_settings(data_dir: Path, command: str, setting: str, says: str) -> None:
    fail(data_dir, says, command, error=IllegalConfig, settings=[setting])


def test_delay_levels(data_dir: Path) -> None:
    fail(data_dir, "messageDelayLevel '1s often'", settings=["messageDelayLevel=1s often"])


def test_a_ready_file_without_a_directory(data_dir: Path, tmp_path: Path) -> None:
    fail(data_dir, f"the directory {tmp_path / 'run'} does not exist", ready_file=tmp_path / "run" / "ready.json")
    assert not data_dir.exists()


def test_a_ready_file_that_is_a_directory(data_dir: Path, tmp_path: Path) -> None:
    fail(data_dir, "cannot be replaced", ready_file=tmp_path)


def test_a_ready_file_that_cannot_be_written(data_dir: Path, tmp_path: Path) -> None:
    """When everything listens already."""
    (tmp_path / "ready.json.tmp").mkdir()
    fail(data_dir, "cannot be written", ready_file=tmp_path / "ready.json")


def test_an_old_ready_file_does_not_outlive_a_failed_start(data_dir: Path, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    ready_file.write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fail(data_dir, "cannot listen", ports={**FREE, "grpc": taken.getsockname()[1]}, ready_file=ready_file)
    assert not ready_file.exists()
