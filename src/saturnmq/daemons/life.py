"""The way of every process: start, say so, wait for a signal, drain, close."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

import msgspec

from saturnmq import __version__
from saturnmq.daemons.banner import banner
from saturnmq.daemons.collecting import Collecting
from saturnmq.daemons.options import Options
from saturnmq.daemons.processes import DAEMONS, DRAIN_MS, Daemon, StartError
from saturnmq.kernel import configfile
from saturnmq.kernel.configfile import IllegalConfig
from saturnmq.net.addresses import dialable
from saturnmq.store.results import StoreRefused

logger = logging.getLogger("saturnmq")

_IMPORTED_S = time.monotonic()


def main(command: str, options: Options) -> None:
    """Run until SIGTERM or SIGINT. Exits 1 with one line of reason when it cannot start."""
    who = f"worker-{options.worker[0]} " if options.worker else ""
    form = f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=form)
    kind = DAEMONS[command]
    for name in kind.quiet:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if options.print_config:
            print_config(kind, options)
        else:
            _raise_descriptor_limit()
            run(live(kind, options))
    except (StartError, IllegalConfig, StoreRefused) as error:
        logger.error("%s", error)
        sys.exit(1)


def print_config(kind: type[Daemon], options: Options) -> None:
    """Every setting in the file's own form, as `mqbroker -p` prints them."""
    values = options.values(*kind.configs)
    for struct in kind.configs:
        for key, value in msgspec.to_builtins(configfile.convert(values, struct)).items():
            print(f"{key}={str(value).lower() if isinstance(value, bool) else value}")


def run(life: Coroutine[object, object, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(life)
    else:
        uvloop.run(life)


def _raise_descriptor_limit() -> None:
    """As many connections as the machine allows: the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a limit below its "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def live(kind: type[Daemon], options: Options) -> None:
    """Raises StartError, IllegalConfig, StoreRefused, and has closed what it opened.

    Until it is ready a signal just ends the process: nothing was promised to anybody yet, and a store that was being
    recovered is recovered by the next start.
    """
    loop = asyncio.get_running_loop()
    daemon = _parent(kind, options, loop) if options.workers > 1 and not options.worker else kind(options, loop)
    ready_file = _ReadyFile(options.ready_file) if options.ready_file and not options.worker else None
    async with daemon.opened:
        await daemon.start()
        stopped = _stopped_by_signal()
        daemon.ready = True
        collecting = Collecting(daemon.clock)
        daemon.opened.callback(collecting.stop)
        collecting.start()
        started_s = _age_s()
        if ready_file is not None:
            daemon.opened.callback(ready_file.remove)
            ready_file.write({name: str(dialable(address)) for name, address in daemon.endpoints.items()})
        if daemon.inlet is not None:
            daemon.inlet.on_gone = stopped.set
            daemon.opened.callback(daemon.inlet.close)
            await daemon.inlet.start()
        else:
            print(banner(daemon, started_s), flush=True)
        if daemon.http is not None:
            daemon.http.start()
        await stopped.wait()
        logger.info("stopping: running requests have %d s to finish", DRAIN_MS // 1000)
        daemon.ready = False
    logger.info("stopped")


def _parent(kind: type[Daemon], options: Options, loop: asyncio.AbstractEventLoop) -> Daemon:
    from saturnmq.daemons.workers import Workers

    return Workers(kind, options, loop)


def _stopped_by_signal() -> asyncio.Event:
    """SIGTERM or SIGINT stops; Ctrl-C after either of them does not wait any more."""
    stopped = asyncio.Event()

    def on_signal(number: int) -> None:
        if stopped.is_set() and number == signal.SIGINT:
            logger.warning("stopped at once; the next start checks the store as after a crash")
            os._exit(128 + number)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stopped


class _ReadyFile:
    """There while, and only while, clients can connect."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.parent.is_dir():
            raise StartError(f"--ready-file {path}: the directory {path.parent} does not exist")
        self.remove()

    def write(self, endpoints: dict[str, str]) -> None:
        """In one step."""
        content = msgspec.json.encode({**endpoints, "pid": os.getpid(), "version": __version__})
        temporary = self._path.with_name(self._path.name + ".tmp")
        try:
            temporary.write_bytes(content)
            temporary.rename(self._path)
        except OSError as error:
            raise StartError(f"--ready-file {self._path} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise StartError(f"--ready-file {self._path} cannot be replaced: {error.strerror}") from error


def _age_s() -> float:
    """Seconds since the process began (Linux), else since this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return time.monotonic() - _IMPORTED_S
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
