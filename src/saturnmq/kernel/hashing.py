"""Which queue a message group has."""

from __future__ import annotations


def jump_hash(key: int, buckets: int) -> int:
    """Which of `buckets` a key belongs to: few keys move when a bucket is added.

    As Apache's Proxy computes it, so that a message group keeps its queue when either server is replaced by the other:
    jump consistent hash (Lamping and Veach, 2014) in Guava's form (Hashing.consistentHash), a 64-bit linear
    congruential generator, over the sign-extended Java hash of the group.
    """
    state = key & 0xFFFFFFFFFFFFFFFF
    bucket = 0
    while True:
        state = (state * 2862933555777941757 + 1) & 0xFFFFFFFFFFFFFFFF
        step = ((state >> 33) + 1) / 2147483648.0
        jump = int((bucket + 1) / step)
        if jump >= buckets:
            return bucket
        bucket = jump
