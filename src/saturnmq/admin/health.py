"""`saturnmq admin health`: what a container or a supervisor asks."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

#: a server that takes longer has no time for clients either
TIMEOUT_S = 3


def add_commands(add: Callable[..., ArgumentParser]) -> None:
    summary = "Is a server ready? The exit code says it; why not is printed."
    parser = add("health", help=summary, description=summary)
    parser.add_argument(
        "address", nargs="?", default="127.0.0.1:5557", metavar="HOST:PORT", help="its HTTP port (127.0.0.1:5557)"
    )
    parser.set_defaults(run=_health)


def _health(given: Namespace) -> int:
    try:
        with urlopen(f"http://{given.address}/readyz", timeout=TIMEOUT_S) as page:
            print(page.read().decode().strip())
            return 0
    except HTTPError as error:
        reason = error.read().decode().strip()
    except (URLError, OSError) as error:
        reason = f"{given.address} does not answer: {getattr(error, 'reason', error)}"
    print(f"saturnmq: {reason}", file=sys.stderr)
    return 1
