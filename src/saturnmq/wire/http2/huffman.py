"""The Huffman code of HPACK (RFC 7541, section 5.2 and appendix B), decoded a byte at a time.

The code is canonical, so the length of each symbol's code is all that has to be shipped. A state of the machine is
an inner node of the code's tree; what a byte does in a state is worked out when it is first met. That makes importing
cheap (1 ms, where the whole machine needs 60) and leaves a dict look-up per byte.
"""

from __future__ import annotations

from functools import lru_cache

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


class State(dict[int, "tuple[State, bytes]"]):
    """An inner node of the tree: for each next byte, the node that it leads to and the symbols met on the way."""

    __slots__ = ("branches", "may_end")

    def __init__(self, may_end: bool) -> None:
        super().__init__()
        self.branches: list[State | int | None] = [None, None]
        #: the bits since the last symbol are all ones and fewer than eight: they may be padding
        self.may_end = may_end

    def __missing__(self, byte: int) -> tuple[State, bytes]:
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
        found = self[byte] = state, bytes(symbols)
        return found


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
    state = ROOT
    parts: list[bytes] = []
    append = parts.append
    for byte in data:
        state, symbols = state[byte]
        append(symbols)
    if not state.may_end:
        raise Http2Error(ErrorCode.COMPRESSION_ERROR, "wrong padding of a Huffman string")
    return b"".join(parts)


_decode_cached = lru_cache(CACHED_STRINGS)(_decode)
