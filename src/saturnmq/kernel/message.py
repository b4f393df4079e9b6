"""Messages on their way into the log and out of it."""

from __future__ import annotations

import msgspec

# sysFlag bits (common/sysflag/MessageSysFlag.java)
COMPRESSED = 0x1
MULTI_TAGS = 0x2
TRANSACTION_MASK = 0xC
TRANSACTION_PREPARED = 0x4
TRANSACTION_COMMIT = 0x8
TRANSACTION_ROLLBACK = 0xC
BORN_HOST_V6 = 0x10
STORE_HOST_V6 = 0x20
NEED_UNWRAP = 0x40
INNER_BATCH = 0x80


class Message(msgspec.Struct, gc=False):
    """A message to append. The log itself adds offsets, the store time and the store host."""

    topic: str
    queue_id: int
    body: bytes
    #: verbatim, as `kernel.properties` packs them
    properties: bytes
    #: on the sender's clock
    born_ms: int
    #: packed by `kernel.host.pack`; 20 bytes are an IPv6 address and set BORN_HOST_V6 in the record
    born_host: bytes
    flag: int = 0
    sys_flag: int = 0
    reconsume_times: int = 0
    prepared_transaction_offset: int = 0


class StoredMessage(msgspec.Struct, gc=False, kw_only=True):
    """A record of the commit log, decoded (`wire.record.decode`)."""

    topic: str
    queue_id: int
    queue_offset: int
    commit_log_offset: int
    body: bytes
    body_crc: int
    properties: bytes
    flag: int
    sys_flag: int
    born_ms: int
    born_host: bytes
    stored_ms: int
    store_host: bytes
    reconsume_times: int
    prepared_transaction_offset: int
    #: of the whole record, bytes
    size: int


class Appended(msgspec.Struct, gc=False):
    """Where an appended message stands."""

    commit_log_offset: int
    #: of the record, bytes
    size: int
    queue_id: int
    queue_offset: int
    stored_ms: int

    @property
    def end(self) -> int:
        """The log position that must be flushed before the message may be acknowledged."""
        return self.commit_log_offset + self.size
