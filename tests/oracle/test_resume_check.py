"""Apache's administration API brings a half message back that was given up. mqadmin 5.5.0 has no command for it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from harness.admin import RemotingConnection
from harness.apache import Apache
from harness.mqadmin import JVM
from harness.pipeline import read_back
from harness.programs import SOURCES

from saturnmq.testing.server import LocalServer
from saturnmq.wire import record

SEND_MESSAGE_V2, GET_MAX_OFFSET = 310, 30
GIVEN_UP = "TRANS_CHECK_MAX_TIME_TOPIC"
WITHIN_S = 20


def given_up(connection: RemotingConnection, count: int) -> None:
    """Until there are so many."""
    deadline = time.monotonic() + WITHIN_S
    while int(connection.ask(GET_MAX_OFFSET, topic=GIVEN_UP, queueId="0")[1]["offset"]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_is_asked_about_again(apache: Apache, tmp_path: Path) -> None:
    settings = {"transactionTimeOut": 200, "transactionCheckInterval": 200, "transactionCheckMax": 1}
    options = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    with LocalServer(*options, home=tmp_path) as server:
        connection = RemotingConnection(server.broker)
        fields = {"a": "p", "b": "TBW102", "c": "TBW102", "d": "4", "e": "0", "f": "4", "g": "1", "h": "0", "j": "0"}
        properties = "TRAN_MSG\x01true\x02PGROUP\x01p\x02"
        connection.call(SEND_MESSAGE_V2, b"half", **fields, i=properties, k="false", m="false")
        given_up(connection, 1)
        [stored] = [record.decode(one.record) for one in read_back(connection, GIVEN_UP, 1)]
        message_id = record.offset_message_id(stored.store_host, stored.commit_log_offset)
        program = str(SOURCES / "resume_check" / "ResumeCheck.java")
        command = [*JVM, f"-Duser.home={tmp_path}", "-cp", f"{apache.home}/lib/*", program, server.namesrv, GIVEN_UP]
        said = subprocess.run([*command, message_id], capture_output=True, text=True, timeout=60, check=True)
        assert said.stdout.split()[-1] == "true", said
        given_up(connection, 2)
        connection.close()
