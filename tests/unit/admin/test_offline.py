"""`saturnmq admin inspect` and `verify` as a user calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saturnmq.admin import cli, offline

APACHE = Path(__file__).parents[2] / "vectors" / "store" / "apache-5.5.0-whole"
LOG = "commitlog/00000000000000000000"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(APACHE, tmp_path / "store")
    return tmp_path / "store"


def damage(root: Path, path: str, at: int) -> None:
    content = bytearray((root / path).read_bytes())
    content[at] ^= 0xFF
    (root / path).write_bytes(content)


def test_verify_of_a_whole_store(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        "files     25, 45,464 bytes",
        "log       49 records from 0 to 13823",
        "queues    7, 49 entries",
        "index     178 items",
        "topic     4 messages in SCHEDULE_TOPIC_XXXX",
        "topic     40 messages in TopicA",
        "topic     5 messages in rmq_sys_wheel_timer",
    ]
    assert lines[-1].startswith("0 damages, 0 notes, ")


def test_verify_of_damage(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(root, LOG, 90)
    assert cli.main(["verify", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"DAMAGE  {LOG} at 0: 238 bytes hold no record: the body of the record at 0 does not match"
    )
    assert cli.main(["verify", "--json", str(root)]) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (told[0]["kind"], told[0]["path"], told[0]["at"]) == ("damage", LOG, 0)
    assert (told[-1]["kind"], told[-1]["damages"]) == ("totals", len(lines) - 8)


def test_verify_tells_few_findings_of_each_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "config" / "consumerOffset.json").write_text(
        json.dumps({"offsetTable": {f"TopicA@group{number}": {"0": 99} for number in range(25)}})
    )
    assert cli.main(["verify", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("DAMAGE")]) == offline.FINDINGS_PER_FILE
    assert "        config/consumerOffset.json: 5 more (--all)" in lines
    assert cli.main(["verify", "--all", str(root)]) == 1
    assert capsys.readouterr().out.count("DAMAGE") == 25


def test_settings(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "commitlog").rename(tmp_path / "elsewhere")
    conf = tmp_path / "broker.conf"
    conf.write_text(
        f"storePathCommitLog={tmp_path}/elsewhere\nmappedFileSizeCommitLog=16384\nmappedFileSizeConsumeQueue=400\n"
        "maxHashSlotNum=30\nmaxIndexNum=60\n"
    )
    assert cli.main(["verify", "-c", str(conf), str(root)]) == 0
    assert cli.main(["verify", "-c", str(conf), "--set", "mappedFileSizeCommitLog=4096", str(root)]) == 1
    assert "has 16384 bytes, not 4096" in capsys.readouterr().out
    for wrong in (["--set", "x"], ["--set", "mappedFileSizeCommitLog=big"], ["-c", "/missing"]):
        assert cli.main(["verify", *wrong, str(root)]) == 2
        assert capsys.readouterr().err.startswith("saturnmq: ")


def test_inspect(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "inspect",
        str(root / "commitlog"),
        "--topic",
        "SCHEDULE_TOPIC_XXXX",
        "--from",
        "11400",
        "--count",
        "1",
    ]
    assert cli.main([*arguments, "--body"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("record   position=11465 size=271 topic=SCHEDULE_TOPIC_XXXX queue=15 offset=0 ")
    assert "body=delayed" in line
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["position"] == 11465


def test_what_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    for arguments in (["verify", str(tmp_path)], ["inspect", str(tmp_path / "letter.txt")], ["inspect", "/missing"]):
        assert cli.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"saturnmq: {arguments[-1]} ")


def test_a_directory_that_a_process_has_open(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """flock tells processes apart, so another one must hold it."""
    (root / "lock").touch()
    code = "import sys; from saturnmq.disk.real import RealDisk; lock = RealDisk(sys.argv[1]).lock('lock'); "
    code += "print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cli.main(["verify", str(root)]) == 0
        assert capsys.readouterr().err.startswith(f"saturnmq: process {process.pid} has {root} open")
        assert cli.main(["inspect", str(root / "consumequeue" / "TopicA" / "0" / "00000000000000000000")]) == 0
        assert capsys.readouterr().err.startswith(f"saturnmq: process {process.pid} has {root} open")
        process.communicate(b"\n")


def test_nothing_is_written(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for path in root.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    cli.main(["verify", str(root)])
    for path in before:
        cli.main(["inspect", str(path), "--count", "1"])
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_closed_pipe_ends_it_silently(root: Path, command: str) -> None:
    arguments = [sys.executable, "-m", "saturnmq", "admin", command, str(root)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_help_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert "inspect" in said
    assert "verify" in said
