"""Header fields of our own, for a Proxy and a Broker that are both ours. Apache's processes ignore them."""

from __future__ import annotations

from saturnmq.wire.remoting.command import Command

#: asks CHANGE_MESSAGE_INVISIBLETIME to keep the handle good that it is asked with; whoever did says `true` as well
KEEP_HANDLE = "keepHandle"
#: with that: the client id of the push consumer that holds the message; its heart-beats keep the lease
KEEP_FOR = "keepFor"
#: asks ACK_MESSAGE and CHANGE_MESSAGE_INVISIBLETIME to look whether the handle is good; who does says `true` as well
CHECKS_HANDLE = "checksHandle"
#: asks HEART_BEAT whether several clients may come over one connection; who takes them says `true` as well
MANY_CLIENTS = "manyClients"


def extensions(command: Command, *names: str) -> dict[str, str]:
    """Of these, what was asked for: to say that it is done."""
    return {name: "true" for name in names if name in command.fields}
