"""Apache's NameServer, recorded (scripts/record_nameserver.py), and ours, asked the same: the same answers."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from saturnmq.nameserver.routes import MinBrokerChange
from saturnmq.testing.nameserver import OfflineNameServer
from saturnmq.testing.offline import OfflineConnection
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.json import parse

VECTOR = Path(__file__).parents[2] / "vectors" / "nameserver" / "conversation.json"
STEPS: list[dict[str, Any]] = json.loads(VECTOR.read_text())
#: beginning of Apache's remark → our code, and what we say
OTHERWISE = {
    "namespace or key is null": (ResponseCode.SYSTEM_ERROR, "required field `key`"),
    # a frame with a class and a line of Apache's
    "org.apache.rocketmq.remoting.exception": (ResponseCode.INVALID_PARAMETER, "the body is no RegisterBrokerBody"),
    # together with SUCCESS
    "not set any response code": (ResponseCode.SUCCESS, ""),
}


def in_order(value: Any) -> Any:
    """Lists as sets: the order of Apache's is that of its hash maps."""
    if isinstance(value, list):
        return sorted(map(in_order, value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, dict):
        return {key: in_order(item) for key, item in value.items()}
    return value


class Conversation:
    def __init__(self) -> None:
        self.names = OfflineNameServer()
        self.connections: defaultdict[str, OfflineConnection] = defaultdict(OfflineConnection)
        self.told: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.names.server.routes.on_min_broker_change = self._tell

    def _tell(self, addresses: list[str], change: MinBrokerChange) -> None:
        fields = {
            "minBrokerId": str(change.min_broker_id),
            "minBrokerAddr": change.min_broker_address,
            "offlineBrokerAddr": change.offline_address,
            "haBrokerAddr": change.ha_address,
        }
        for address in addresses:
            self.told[address].append(
                {"code": 905, "fields": {key: value for key, value in fields.items() if value is not None}}
            )

    def go_through(self, step: dict[str, Any]) -> None:
        if "close" in step:
            self.connections.pop(step["close"]).close()
        elif "told" in step:
            assert {address: self.told[address] for address in step["told"]} == step["told"]
            self.told.clear()
        else:
            self._compare(step)

    def _compare(self, step: dict[str, Any]) -> None:
        body = base64.b64decode(step["base64"]) if "base64" in step else step["body"].encode()
        connection = self.connections[step["on"]]
        code, apaches = step["code"], step["answer"]
        if code not in self.names.handlers:
            assert apaches["code"] == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
            return
        ours = self.names.ask(code, step["fields"], body, connection, step["version"])
        remark = (apaches["remark"] or "").partition("\n")[0].rstrip(".")
        said = next((said for words, said in OTHERWISE.items() if remark.startswith(words)), (apaches["code"], remark))
        assert ours.code == said[0], (step, ours.remark)
        assert said[1] in ours.remark, step
        assert ours.fields == apaches["fields"], step
        assert in_order(parse(ours.body) if ours.body else None) == in_order(apaches["body"]), step


def test_every_answer_is_apaches() -> None:
    conversation = Conversation()
    for step in STEPS:
        conversation.go_through(step)


def test_the_conversation_is_about_everything_that_a_nameserver_does() -> None:
    asked = {step["code"] for step in STEPS if "code" in step}
    assert OfflineNameServer().handlers.keys() - asked == {RequestCode.GET_NAMESRV_CONFIG}
