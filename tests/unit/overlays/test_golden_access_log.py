"""The service that writes the web server's access log: complete lines, a limit, counts above it, a full disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module

LINE = '{"ts":"2026-01-02T03:04:05+00:00","ip":"%s","net":"%s","rid":"a","uri":"%s","status":%d,"bytes":%d,"x":""}\n'


@pytest.fixture(scope="module")
def access_log() -> ModuleType:
    return golden_module("golden.access_log")


@pytest.fixture
def pipes() -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Two pipes: the end that is read, and the one that is written to."""
    always, budgeted = os.pipe(), os.pipe()
    yield always, budgeted
    for descriptor in (*always, *budgeted):
        os.close(descriptor)


def line(net: str = "192.0.2.1", uri: str = "/", status: int = 200, size: int = 10) -> bytes:
    return (LINE % (net, net, uri, status, size)).encode()


def test_lines_are_cut_from_chunks(access_log: ModuleType) -> None:
    lines = access_log.Lines()
    assert lines.add(b"one\ntw") == b"one\n"
    assert lines.add(b"o") == b""
    assert lines.add(b"\nthree\nfour\n") == b"two\nthree\nfour\n"
    assert lines.add(b"") == b""


def test_a_line_without_an_end_is_ended(access_log: ModuleType) -> None:
    lines = access_log.Lines()
    whole = lines.add(b"a\n" + b"x" * (access_log.LONGEST + 1))
    assert whole == b"a\n" + b"x" * (access_log.LONGEST + 1) + b"\n"
    assert lines.add(b"b\n") == b"b\n"


def test_budget_is_renewed_in_a_day(access_log: ModuleType) -> None:
    budget = access_log.Budget(1000, 0.0)
    assert budget.take(900, 0.0)
    assert not budget.take(200, 0.0)
    assert budget.take(100, 0.0)
    assert not budget.take(1, 0.0)
    assert budget.take(500, access_log.DAY / 2)
    assert not budget.take(1001, 10 * access_log.DAY)


def test_requests_beyond_the_budget_are_counted(access_log: ModuleType) -> None:
    counts = access_log.Counts()
    counts.add(line(size=10) * 2 + line(status=429, size=1) + line("2001:db8::/64", status=429) + b"unreadable\n")
    entries = [json.loads(one) for one in counts.take().splitlines()]
    assert [(entry["net"], entry["status"], entry["requests"], entry["bytes"]) for entry in entries] == [
        ("192.0.2.1", 200, 2, 20), ("192.0.2.1", 429, 1, 1), ("2001:db8::/64", 429, 1, 10), ("", 0, 1, 0),
    ]  # fmt: skip
    assert {entry["ts"] for entry in entries} == {"2026-01-02T03:04:05+00:00"}
    assert counts.take() == b""


def test_networks_beyond_the_limit_are_counted_together(access_log: ModuleType) -> None:
    counts = access_log.Counts()
    for number in range(access_log.NETWORKS + 5):
        counts.add(line(f"10.0.{number // 256}.{number % 256}"))
    entries = [json.loads(one) for one in counts.take().splitlines()]
    assert len(entries) == access_log.NETWORKS + 1
    assert (entries[-1]["net"], entries[-1]["requests"]) == ("others", 5)


@pytest.mark.parametrize("uri", [r"/\",\"status\":200,\"bytes\":5,", r"/\",\"net\":\"203.0.113.9\""])
def test_what_a_client_sends_is_not_counted_as_another(access_log: ModuleType, uri: str) -> None:
    counts = access_log.Counts()
    counts.add(line(uri=uri, status=429, size=7))
    (entry,) = map(json.loads, counts.take().splitlines())
    assert (entry["net"], entry["status"], entry["bytes"]) == ("192.0.2.1", 429, 7)


def test_one_pipe_is_always_whole(access_log: ModuleType, pipes: Any) -> None:
    (always, to_always), (budgeted, to_budgeted) = pipes
    queue = access_log.Queue()
    reader = access_log.Reader(always, budgeted, budget=access_log.Budget(len(line()), 0.0), queue=queue)
    os.write(to_budgeted, line())
    reader.read()
    os.write(to_budgeted, line() * 3)
    os.write(to_always, line(uri="/kept") * 3)
    reader.read()
    reader.read(0.0)
    reader._second = -1
    reader.read(0.0)
    lines = queue.take()[0].decode().splitlines()
    assert [json.loads(one).get("uri", "counted") for one in lines].count("/kept") == 3
    assert [json.loads(one).get("uri") for one in lines].count("/") == 1
    assert sum(json.loads(one).get("requests", 0) for one in lines) == 3


def test_file_is_opened_again_after_rotation(access_log: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = access_log.LogFile(path)
    log.write(b"")
    assert path.read_bytes() == b""
    log.write(b"one\n")
    path.rename(tmp_path / "access.log.1")
    log.write(b"two\n")
    path.unlink()
    log.write(b"three\n")
    assert (tmp_path / "access.log.1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"three\n"


def test_link_in_the_place_of_the_log_is_not_followed(access_log: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "access.log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        access_log.LogFile(tmp_path / "access.log").write(b"one\n")
    assert not (tmp_path / "other").exists()


def test_full_disk_costs_its_lines_only(
    access_log: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, write = tmp_path / "access.log", os.write
    log, queue = access_log.LogFile(path), access_log.Queue()
    room = [5]

    def full(descriptor: int, content: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(descriptor, content[: room[0]])
        room[0] -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        queue.add(b"one\ntwo\n")
        access_log.write_all(queue, log, rounds=1)
    queue.add(b"three\n")
    access_log.write_all(queue, log, rounds=1)
    # The truncated line is on a separate line.
    assert path.read_bytes() == b"one\nt\nthree\n"
    assert "2 lines of the access log are lost: [Errno 28]" in capsys.readouterr().err


def test_slow_disk_does_not_stop_the_reader(
    access_log: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(access_log, "WAITING", 10)
    queue = access_log.Queue()
    for _round in range(3):
        queue.add(b"1234567\n")
    access_log.write_all(queue, access_log.LogFile(tmp_path / "access.log"), rounds=1)
    assert (tmp_path / "access.log").read_bytes() == b"1234567\n"
    assert "2 lines of the access log are lost: the disk is too slow" in capsys.readouterr().err


def test_the_command_reads_the_pipes(access_log: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(access_log, "main", lambda: called.append(True))
    golden_module("golden.commands.access_log").main()
    assert called == [True]
