"""Remoting frames: both header encodings, any split of the bytes, limits, and what is no frame at all."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saturnmq.kernel import errors
from saturnmq.kernel.config import Limits
from saturnmq.wire.remoting.codes import LanguageCode, RequestCode, ResponseCode, response_code
from saturnmq.wire.remoting.command import ONE_WAY, RESPONSE, Command, Response
from saturnmq.wire.remoting.connection import RemotingDecoder, encode, encode_response

LIMITS = Limits()

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
int32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    binary = draw(st.booleans())
    value = text.filter(bool) if binary else text  # binary headers have no empty values: they are absent
    return Command(
        code=draw(st.sampled_from([*RequestCode, 0, 1, -1006])),
        opaque=draw(int32),
        flag=draw(st.sampled_from([0, ONE_WAY])),
        language=draw(st.sampled_from(list(LanguageCode))),
        version=draw(st.integers(0, 1000)),
        remark=draw(st.none() | value),
        fields=draw(st.dictionaries(text.filter(bool), value, max_size=8)),
        body=draw(st.binary(max_size=200)),
        binary=binary,
    )


def decode_all(chunks: list[bytes], limits: Limits = LIMITS) -> list[Command]:
    decoder = RemotingDecoder(limits)
    decoded = []
    for chunk in chunks:
        decoded += decoder.receive_data(chunk)
        while decoder.has_more:
            decoded += decoder.receive_data(b"")
    return decoded


def frame(header: bytes, body: bytes = b"", encoding: int = 0) -> bytes:
    return struct.pack(">II", 4 + len(header) + len(body), encoding << 24 | len(header)) + header + body


def json_header(header: object) -> Command:
    [command] = decode_all([frame(json.dumps(header).encode())])
    return command


@given(commands())
def test_what_is_encoded_is_decoded(command: Command) -> None:
    assert decode_all([encode(command)]) == [command]


@given(st.lists(commands(), max_size=5), st.lists(st.integers(0, 2000), max_size=10), st.integers(1, 4))
def test_any_split_of_the_bytes_gives_the_same_commands(sent: list[Command], cuts: list[int], per_turn: int) -> None:
    data = b"".join(map(encode, sent))
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    chunks = [data[a:b] for a, b in pairwise(edges)]
    assert decode_all(chunks, Limits(remoting_requests_per_turn=per_turn)) == sent


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_protocol_errors(data: bytes) -> None:
    with suppress(errors.ProtocolError):
        decode_all([data])


@settings(max_examples=300)
@given(commands(), st.lists(st.tuples(st.integers(4, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_frames_raise_only_protocol_errors(command: Command, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encode(command))
    for place, value in changes:
        data[place % len(data)] = value
    with suppress(errors.ProtocolError):
        for decoded in decode_all([bytes(data)]):
            encode_response(decoded, Response())


@given(st.binary(max_size=200), st.sampled_from([0, 1]))
def test_random_headers_raise_only_protocol_errors(header: bytes, encoding: int) -> None:
    with suppress(errors.ProtocolError):
        decode_all([frame(header, b"body", encoding)])


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\x7f\xff\xff\xff", "claims 2147483647 bytes"),
        (b"\xff\xff\xff\xff", "claims -1 bytes"),
        (b"\x00\x00\x00\x03", "claims 3 bytes"),
        (b"\x01\x00\x00\x01", "the limit is 16777216"),
        (b"GET / HTTP/1.1\r\n", "an HTTP request"),
        (b"PRI * HTTP/2.0\r\n", "an HTTP request"),
        (b"\x16\x03\x01\x02", "a TLS handshake"),
        (b"\x00\x00\x00\x04\x07\x00\x00\x00", "encoding 7 is unknown"),
        (b"\x00\x00\x00\x04\x00\x00\x00\x05", "a header of 5 bytes in a frame with 0 left"),
    ],
)
def test_what_is_no_frame_is_refused_at_once(head: bytes, reason: str) -> None:
    with pytest.raises(errors.ProtocolError, match=reason):
        RemotingDecoder(LIMITS).receive_data(head)


def test_commands_before_a_broken_frame_come_first() -> None:
    decoder = RemotingDecoder(LIMITS)
    good = Command(105, 1)
    assert decoder.receive_data(encode(good) + b"\xff\xff\xff\xff") == [good]
    assert decoder.has_more
    with pytest.raises(errors.ProtocolError):
        decoder.receive_data(b"")


def test_a_large_frame_in_small_pieces_costs_no_more_than_its_bytes() -> None:
    command = Command(310, 7, body=bytes(4 << 20))
    data = encode(command)
    decoder = RemotingDecoder(LIMITS)
    for at in range(0, len(data) - 100, 100):
        assert decoder.receive_data(data[at : at + 100]) == []
    assert decoder.receive_data(data[at + 100 :]) == [command]


@given(st.lists(commands(), min_size=1, max_size=4), commands(), st.lists(commands(), max_size=4), st.data())
def test_a_frame_that_is_refused_is_passed_over(
    before: list[Command], refused: Command, after: list[Command], data: st.DataObject
) -> None:
    first, middle, last = b"".join(map(encode, before)), encode(refused), b"".join(map(encode, after))
    header_end = 8 + int.from_bytes(middle[5:8], "big")
    cut = data.draw(st.integers(header_end, len(middle)))
    decoder = RemotingDecoder(LIMITS)
    assert decoder.receive_data(first + middle[: min(cut, len(middle) - 1)]) == before
    told = decoder.refuse()
    if cut == len(middle) and header_end == len(middle):
        assert told is None, "its header has not come"
        return
    assert told is not None
    assert (told.code, told.opaque, told.fields, told.body) == (refused.code, refused.opaque, refused.fields, b"")
    assert decoder.held_bytes == 0
    rest = middle[min(cut, len(middle) - 1) :] + last
    ends = sorted(data.draw(st.lists(st.integers(0, len(rest)), max_size=4)))
    chunks = [rest[start:end] for start, end in pairwise([0, *ends, len(rest)])]
    assert [command for chunk in chunks for command in decoder.receive_data(chunk)] == after
    assert decoder.refuse() is None


def test_json_headers_are_read_as_fastjson_reads_them() -> None:
    command = json_header(
        {
            "code": "310",
            "language": 9,
            "opaque": 5,
            "remark": None,
            "serializeTypeCurrentRPC": "JSON",
            "extFields": {"a": 1, "b": True, "c": None, "d": "x", "e": 1.5},
            "unknown": {},
        }
    )
    assert command == Command(
        310, 5, language=LanguageCode.GO, version=0, fields={"a": "1", "b": "true", "d": "x", "e": "1.5"}
    )


@pytest.mark.parametrize(
    ("language", "expected"),
    [("JAVA", LanguageCode.JAVA), ("GO", LanguageCode.GO), ("COBOL", LanguageCode.OTHER), (None, LanguageCode.OTHER)],
)
def test_languages_come_by_name(language: str | None, expected: LanguageCode) -> None:
    assert json_header({"code": 1, "language": language}).language == expected


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "3",
        "{",
        '{"code":"x"}',
        '{"extFields":[1]}',
        '{"opaque":{}}',
        '{"code":' + "9" * 5000 + "}",
        '{"x":' + "[" * 100_000,
    ],
)
def test_json_that_is_no_header_is_a_protocol_error(header: str) -> None:
    with pytest.raises(errors.ProtocolError):
        decode_all([frame(header.encode())])


def test_codes_that_16_bits_cannot_hold_come_back() -> None:
    for code in (RequestCode.POP_MESSAGE, RequestCode.BATCH_ACK_MESSAGE, RequestCode.TRIGGER_LITE_DISPATCH):
        data = encode(Command(code, 1, binary=True))
        assert struct.unpack_from(">h", data, 8) == (code & 0xFFFF,)
        assert decode_all([data])[0].code == code
    # an answer's code is another number
    assert decode_all([encode(Command(3442, 1, RESPONSE, binary=True))])[0].code == 3442


@pytest.mark.parametrize("binary", [False, True])
def test_an_answer_comes_in_the_encoding_of_the_question(binary: bool) -> None:
    fields = {"msgId": "7F00", "queueId": "3", "größe": "ü"}
    for response in (Response(), Response(17, 'no "topic"', fields, b"body")):
        [answer] = decode_all([encode_response(Command(310, 99, binary=binary), response)])
        assert answer.binary is binary
        assert (answer.code, answer.opaque, answer.flag) == (response.code, 99, RESPONSE)
        assert (answer.remark, answer.fields, answer.body) == (response.remark, response.fields, response.body)


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        (struct.pack(">HBI", 1, 97, 9), "claims 9 bytes"),
        (struct.pack(">HBI", 1, 97, 0xFFFFFFFF), "claims 4294967295 bytes"),
        (b"\xff\xff", "ends too early"),
        (struct.pack(">H3sI", 900, b"abc", 0), "ends too early"),
    ],
)
def test_binary_fields_stay_inside_of_their_header(section: bytes, reason: str) -> None:
    header = struct.pack(">hbhiiiI", 310, 0, 479, 1, 0, 0, len(section)) + section
    with pytest.raises(errors.ProtocolError, match=reason):
        decode_all([frame(header, encoding=1)])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SaturnError("x"), ResponseCode.SYSTEM_ERROR),
        (errors.TopicNotFound("x"), ResponseCode.TOPIC_NOT_EXIST),
        (errors.BodyTooLarge("x"), ResponseCode.MESSAGE_ILLEGAL),
        (errors.FlushTimeout("x"), ResponseCode.FLUSH_DISK_TIMEOUT),
        (errors.RequestTimeout("x"), ResponseCode.SYSTEM_ERROR),
    ],
)
def test_every_error_has_a_code(error: errors.SaturnError, code: ResponseCode) -> None:
    assert response_code(error) == code
