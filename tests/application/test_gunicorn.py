from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from build.spec import layers
from build.spec.golden_yaml import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The configuration file as gunicorn reads it."""
    stack = layers.load_stack(ROOT / "overlays", load(ROOT / "golden.yaml"))
    (node,) = [node for node in stack.nodes if node.path == "/etc/gunicorn/gunicorn.conf.py"]
    monkeypatch.setenv("WEB_CONCURRENCY", "5")
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = ModuleType("configuration")
    exec(compile(node.content, node.path, "exec"), vars(module))
    monkeypatch.setattr(module, "MEDIA", tmp_path)
    return module


@pytest.mark.req("R19")
def test_workers_are_those_of_the_environment(configuration: ModuleType) -> None:
    assert configuration.workers == 5


@pytest.mark.req("R22")
def test_workers_stop_before_systemd_stops_them(configuration: ModuleType) -> None:
    unit = (ROOT / "overlays/40-app/rootfs/etc/systemd/system/gunicorn.service").read_text()
    assert f"TimeoutStopSec={configuration.graceful_timeout + 10}\n" in unit


def test_the_socket_is_handed_over_by_its_number_and_stays_systemds(configuration: ModuleType) -> None:
    assert configuration.bind == ["fd://3"]
    # gunicorn takes both the sockets of bind and those of systemd's variable.
    assert "LISTEN_FDS" not in os.environ
    server = SimpleNamespace(systemd=False)
    configuration.on_starting(server)
    assert server.systemd


@pytest.mark.req("F12")
def test_half_files_of_a_worker_go_with_it(configuration: ModuleType, tmp_path: Path) -> None:
    names = [".incoming-7-a.png", ".incoming-70-b.png", "c.png"]
    for name in names:
        (tmp_path / name).touch()
    configuration.child_exit(None, SimpleNamespace(pid=7))
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])
    configuration.on_starting(SimpleNamespace())
    assert {path.name for path in tmp_path.iterdir()} == {"c.png"}


@pytest.mark.req("R13", "R23")
def test_line_is_json_with_the_requests_identity(configuration: ModuleType) -> None:
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "text %s", ("ü",), None)
    record.rid, record.fields = "0" * 32, {"status": 200}
    line = json.loads(configuration.JsonFormatter().format(record))
    assert (line["msg"], line["rid"], line["status"], line["level"]) == ("text ü", "0" * 32, 200, "INFO")


def test_trace_is_in_the_line_and_not_below_it(configuration: ModuleType) -> None:
    with pytest.raises(ValueError, match="broken") as broken:
        int("broken")
    record = logging.LogRecord("app", logging.ERROR, __file__, 1, "failed", (), (broken.type, broken.value, broken.tb))
    line = configuration.JsonFormatter().format(record)
    assert "\n" not in line
    assert "ValueError: invalid literal" in json.loads(line)["trace"]
    assert json.loads(line)["rid"] == "-"
