"""One NameServer of Apache's, one mqadmin and one process per client for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.apache import Apache
from harness.mqadmin import Mqadmin
from harness.remoting_fixtures import remoting_process  # noqa: F401 - a fixture
from harness.servers import free_port


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.oracle)


@pytest.fixture(scope="session")
def run_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs and data of this run; pytest keeps those of the last three."""
    return tmp_path_factory.mktemp("oracle")


@pytest.fixture(scope="session")
def apache(run_home: Path) -> Iterator[Apache]:
    home = run_home / "apache"
    home.mkdir()
    apache = Apache(home)
    yield apache
    apache.kill()


@pytest.fixture(scope="session")
def namesrv(apache: Apache) -> str:
    """Apache's NameServer, which both brokers know."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    apache.start("namesrv", port, NAMESRV=address)
    return address


@pytest.fixture(scope="session")
def mqadmin(apache: Apache) -> Iterator[Mqadmin]:
    mqadmin = Mqadmin(apache)
    yield mqadmin
    mqadmin.close()
