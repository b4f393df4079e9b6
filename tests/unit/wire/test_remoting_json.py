"""fastjson's dialect."""

from __future__ import annotations

import json as standard
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.topic import MessageQueue
from saturnmq.wire.remoting import json

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{0:"a:1",1:"b:2"}', {"0": "a:1", "1": "b:2"}),
        ("{name:'it''s'}", None),
        ("{name:'it\\'s',\"b\":[1,2,],}", {"name": "it's", "b": [1, 2]}),
        ('{a:-1,b:1.5e3,c:true,d:null,e:"\\u00fc\\n"}', {"a": -1, "b": 1500.0, "c": True, "d": None, "e": "ü\n"}),
        ("{'x':'\\ud83d\\ude80'}", {"x": "🚀"}),
        ("{'x':'\\ud83d'}", {"x": "\ufffd"}),
        ("[]", []),
        ("{1:{2:[{}]}}", {"1": {"2": [{}]}}),
        ("", None),
        ("{a}", None),
        ("{a:}", None),
        ("{a:1 b:2}", None),
        ("[1 2]", None),
        ("{a:1}x", None),
        ("{a:1", None),
        ("{a:word}", None),
        ("{:1}", None),
        ("{a:1-2}", None),
        ("{a:.}", None),
        ("{'a", None),
        ("{{a:1}:2}", None),
        ("{a:" + "9" * 30 + "0}", {"a": 1e31 - 10}),
    ],
)
def test_reading(text: str, value: Any) -> None:
    if value is None:
        with pytest.raises(ProtocolError):
            json.parse(text.encode())
    else:
        assert json.parse(text.encode()) == value


@given(values)
def test_standard_json_is_read_by_the_tolerant_reader_too(value: Any) -> None:
    text = "{dialect:" + standard.dumps(value) + ",}"
    expected = standard.loads(standard.dumps(value).encode("utf-8", "replace"))
    if "\\ud" not in text:  # lone surrogates are replaced
        assert json.parse(text.encode()) == {"dialect": expected}


@given(st.text(alphabet="{}[]:,'\"\\ab1.-eu ", max_size=40))
def test_any_text_raises_only_protocol_errors(text: str) -> None:
    with suppress(ProtocolError):
        json.parse(text.encode())


def test_depth_and_length_are_bounded() -> None:
    with pytest.raises(ProtocolError, match="deeper"):
        json.parse(b"[" * 100_000)
    with pytest.raises(ProtocolError, match="too long"):
        json.parse(b"{a:[1,1,1,1,1,1]}", most_tokens=10)


def test_maps_of_message_queues() -> None:
    queues = {MessageQueue("t", "b", 0): {"offset": 1}, MessageQueue("t", "b", 1): {"offset": 2}}
    text = json.write({"offsetTable": json.write_queue_map(queues), "tps": 0.0})
    assert text == (
        b'{"offsetTable":{{"topic":"t","brokerName":"b","queueId":0}:{"offset":1},'
        b'{"topic":"t","brokerName":"b","queueId":1}:{"offset":2}},"tps":0.0}'
    )
    assert json.parse(text) == {"offsetTable": queues, "tps": 0.0}
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text)
