"""The Huffman code of HPACK (RFC 7541, section 5.2 and appendix B), decoded a byte at a time.

The code is canonical, so the length of each symbol's code is all that has to be shipped. A state of the machine is
an inner node of the code's tree; what a byte does in a state is worked out when it is first met. That makes importing
cheap (1 ms, where the whole machine needs 60) and leaves a list look-up per byte.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

from saturnmq.wire.http2.frames import ErrorCode, Http2Error

EOS = 256

#: bits of the code of symbol 0, 1, … 256, one character each: 0-9 then a=10, b=11, …
CODE_LENGTHS = (
    "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6cad677777777777777777777"
    "77878djde6f56565666577666567655677777fbedskmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmo"
    "lmnnllmlnmnnkmmmnmmnqqkjmnmpqqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrqu"
)

#: strings up to here are kept: most header values of a client come again and again
CACHED_BYTES = 128
#: at most 1 MB of them, whoever sends them
CACHED_STRINGS = 2048


#: what a byte leads to: the row of the next state, and the symbols met on the way
Step: TypeAlias = "tuple[Row, bytes]"
#: 256 steps, then the state itself. A plain list: nothing else is looked up as fast.
Row: TypeAlias = list[Any]
#: not worked out yet: whatever is looked up next raises IndexError
UNKNOWN: Step = ([], b"")
STATE = 256


class State:
    """An inner node of the tree."""

    __slots__ = ("branches", "may_end", "row")

    def __init__(self, may_end: bool) -> None:
        #: by the next bit: a state, a symbol, or nothing for a code that does not exist
        self.branches: list[State | int | None] = [None, None]
        #: the bits since the last symbol are all ones and fewer than eight: they may be padding
        self.may_end = may_end
        self.row: Row = []

    def steps(self) -> Row:
        if not self.row:
            self.row[:] = [UNKNOWN] * STATE
            self.row.append(self)
        return self.row

    def step(self, byte: int) -> Step:
        """Raises Http2Error."""
        state = self
        symbols = bytearray()
        for shift in range(7, -1, -1):
            branch = state.branches[byte >> shift & 1]
            if isinstance(branch, State):
                state = branch
            elif branch is None or branch == EOS:
                raise Http2Error(ErrorCode.COMPRESSION_ERROR, "the end-of-string symbol inside a Huffman string")
            else:
                symbols.append(branch)
                state = ROOT
        return state.steps(), bytes(symbols)


def _build() -> State:
    root = State(may_end=True)
    code = previous = 0
    for length, symbol in sorted((int(length, 36), symbol) for symbol, length in enumerate(CODE_LENGTHS)):
        code <<= length - previous
        previous = length
        _plant(root, code, length, symbol)
        code += 1
    return root


def _plant(root: State, code: int, length: int, symbol: int) -> None:
    state = root
    for shift in range(length - 1, 0, -1):
        bit = code >> shift & 1
        branch = state.branches[bit]
        if branch is None:
            depth = length - shift
            branch = state.branches[bit] = State(may_end=depth < 8 and bit == 1 and state.may_end)
        assert isinstance(branch, State)
        state = branch
    state.branches[code & 1] = symbol


ROOT = _build()


def decode(data: bytes) -> bytes:
    """Raises Http2Error for an end-of-string symbol and for padding that is too long or not all ones."""
    if len(data) <= CACHED_BYTES:
        return _decode_cached(data)
    return _decode(data)


def _decode(data: bytes) -> bytes:
    row = ROOT.steps()
    parts: list[bytes] = []
    append = parts.append
    try:
        for byte in data:
            row, symbols = row[byte]
            append(symbols)
        may_end = row[STATE].may_end
    except IndexError:
        _learn(data)
        return _decode(data)
    if not may_end:
        raise Http2Error(ErrorCode.COMPRESSION_ERROR, "wrong padding of a Huffman string")
    return b"".join(parts)


def _learn(data: bytes) -> None:
    """Work out the steps of this string."""
    row = ROOT.steps()
    for byte in data:
        if row[byte] is UNKNOWN:
            row[byte] = row[STATE].step(byte)
        row = row[byte][0]


_decode_cached = lru_cache(CACHED_STRINGS)(_decode)
