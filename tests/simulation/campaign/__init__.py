"""Lives of a broker on a simulated disk, each cut off somewhere, and what must hold after every cut.

`history` is what clients were told; nothing of the store or the broker takes part in remembering it. `process` is a
broker on such a disk, `life` one that does random things, `damage` flips bits. `checks` compares what a broker finds
with the history. `lives` strings lives together, one seed after the other; `everywhere` takes one short life and tries
all of its ends. `planted` are faults that they must find.

The invariants, under SYNC_FLUSH (what is weaker under ASYNC_FLUSH is said where it is checked):

1. every acknowledged message is at its offset, with its bytes, until it is old enough to be deleted;
2. no offset is given twice: what anybody was told stands at a place is the only thing that ever stands there;
3. the queues hold what the log holds, all of it and nothing else;
4. a message that a group acknowledged does not come back to it, and one that it did not acknowledge does;
5. committed offsets are ones that were committed, never past the queue's end, and not lost once they were written;
6. a delayed message comes, and not early; a half message comes, as long as its producer knows that it shall;
7. a message is found by its key;
8. of a message whose bytes were damaged only itself is lost, and that is said;
9. `admin verify` and the store's own reports call nothing damage that a crash alone has left, and all that is damaged.
"""
