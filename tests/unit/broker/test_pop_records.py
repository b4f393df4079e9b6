"""One field of a record without the rest of it."""

from __future__ import annotations

import pytest

from saturnmq.kernel.message import Message
from saturnmq.wire import record


@pytest.mark.parametrize("born_host", [bytes(8), bytes(20)])
@pytest.mark.parametrize("store_host", [bytes(8), bytes(20)])
@pytest.mark.parametrize("times", [0, 1, 2**31 - 1])
def test_reconsume_times(born_host: bytes, store_host: bytes, times: int) -> None:
    message = Message("t", 3, b"body", b"", 1 << 40, born_host, reconsume_times=times, sys_flag=1, flag=-1)
    data = record.encode(message, queue_offset=7, commit_log_offset=8, stored_ms=9, store_host=store_host)
    assert record.reconsume_times(data) == times
