"""`saturnmq admin health`"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from saturnmq.admin import cli
from saturnmq.net.http import HttpServer


class Page:
    """An HTTP port that is ready, or not."""

    def __init__(self) -> None:
        self.trouble = ""
        self._loop = asyncio.new_event_loop()
        self._server = HttpServer(lambda: "", lambda: self.trouble)
        self.address = self._server.bind("127.0.0.1", 0)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._loop.call_soon_threadsafe(self._server.start)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page()
    yield page
    page.close()


def test_ready_or_why_not(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", str(page.address)]) == 0
    assert capsys.readouterr().out == "ready\n"
    page.trouble = "none of the brokers can be reached: broker-a"
    assert cli.main(["health", str(page.address)]) == 1
    assert capsys.readouterr().err == "saturnmq: none of the brokers can be reached: broker-a\n"


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", "127.0.0.1:1"]) == 1
    assert "127.0.0.1:1 does not answer: [Errno 111] Connection refused" in capsys.readouterr().err
