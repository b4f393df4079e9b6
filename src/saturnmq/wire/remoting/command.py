"""One frame of the Remoting protocol as a value."""

from __future__ import annotations

import msgspec

from saturnmq.wire.remoting.codes import LanguageCode

RESPONSE = 1
ONE_WAY = 2

#: What we say that we are. The number is the ordinal of Apache's MQVersion: V5_3_3. Peers choose behaviour by it.
LANGUAGE = LanguageCode.PYTHON
VERSION = 479


class Command(msgspec.Struct, gc=False):
    """A request, or a response when `flag` has RESPONSE. `fields` are the header's extFields as they came."""

    code: int
    #: chosen by who asks, unique among its open requests on one connection; the answer repeats it
    opaque: int
    flag: int = 0
    #: a LanguageCode, OTHER when the peer's name for it is unknown
    language: int = LANGUAGE
    #: ordinal of Apache's MQVersion
    version: int = VERSION
    remark: str | None = None
    fields: dict[str, str] = {}
    body: bytes = b""
    #: the header came, and the answer goes, in the ROCKETMQ encoding instead of JSON
    binary: bool = False


class Response(msgspec.Struct, gc=False):
    """What a handler answers."""

    code: int = 0
    remark: str | None = None
    fields: dict[str, str] = {}
    body: bytes = b""
