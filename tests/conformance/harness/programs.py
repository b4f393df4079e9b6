"""Builds the client programs of tests/conformance/clients/ and says how each is run.

A program is built once per state of its sources, in a copy under build/conformance/, and re-used until they change.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "tests" / "conformance" / "clients"
BUILDS = ROOT / "build" / "conformance"


class ToolMissing(Exception):
    """A language that this machine cannot build or run."""


class BuildFailed(Exception):
    """A build command of a client program failed."""


@dataclass(frozen=True)
class Toolchain:
    needs: tuple[str, ...]
    build: tuple[tuple[str, ...], ...]
    #: run in the built copy; `{home}` is a directory where the client may write its logs
    run: tuple[str, ...]


PYTHON = Toolchain(needs=(), build=(), run=(sys.executable, "client.py"))
GO = Toolchain(needs=("go",), build=(("go", "build", "-buildvcs=false", "-o", "client", "."),), run=("./client",))
NODE = Toolchain(
    needs=("node", "npm"),
    build=(("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"),),
    run=("node", "client.js"),
)
RUST = Toolchain(needs=("cargo",), build=(("cargo", "build", "--quiet", "--locked"),), run=("./target/debug/client",))
JAVA = Toolchain(
    needs=("java", "mvn"),
    build=(("mvn", "-q", "-B", "compile", "dependency:copy-dependencies"),),
    # a short life on few cores: the first compiler stage and one collector thread start fastest
    run=(
        *("java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Duser.home={home}"),
        *("-cp", "target/classes:target/dependency/*", "Client"),
    ),
)


@dataclass(frozen=True)
class ProgramSource:
    """One folder of clients/."""

    folder: str
    toolchain: Toolchain
    #: tells builds of one folder apart
    variant: str = ""

    @property
    def _name(self) -> str:
        return self.folder + self.variant

    def missing_tools(self) -> list[str]:
        return [tool for tool in self.toolchain.needs if shutil.which(tool) is None]

    def built(self) -> Path:
        """The folder with the built program. Raises ToolMissing, BuildFailed."""
        if missing := self.missing_tools():
            raise ToolMissing(f"{self.folder} client needs {' and '.join(missing)} on the PATH")
        source = SOURCES / self.folder
        target = BUILDS / f"{self._name}-{self._digest(source)}"
        BUILDS.mkdir(parents=True, exist_ok=True)
        tool = self.toolchain.needs[0] if self.toolchain.needs else "python"
        with open(BUILDS / f"{tool}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side, and two Mavens would spoil what both download
            if not target.exists():
                self._build(source, target)
        return target

    def _digest(self, source: Path) -> str:
        digest = hashlib.sha256(repr(self.toolchain).encode())
        for path in sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            digest.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:12]

    def _build(self, source: Path, target: Path) -> None:
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("__pycache__"))
        for command in self.toolchain.build:
            done = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BuildFailed(f"{' '.join(command)} in {partial}:\n{done.stdout}{done.stderr}")
        for stale in BUILDS.glob(f"{self._name}-*"):
            if stale.is_dir() and stale != partial:
                shutil.rmtree(stale, ignore_errors=True)
        partial.rename(target)


def built_or_skipped(source: ProgramSource) -> Path:
    """A language that is missing fails the run in CI and skips its tests, loudly, on a developer's machine."""
    try:
        return source.built()
    except ToolMissing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run every client: {missing}")
        pytest.skip(f"NOT TESTED: {missing}")
