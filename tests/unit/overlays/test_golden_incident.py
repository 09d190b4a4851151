"""golden-isolate: the fence admits only the named addresses; the evidence is complete and contains no secret."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.overlays.conftest import Programs, Result

core = golden_module("golden.core")
fence = golden_module("golden.fence")
evidence = golden_module("golden.evidence")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, programs: Programs) -> Programs:
    """A machine with a fake packet filter, logs, and an empty directory for the state."""
    monkeypatch.setattr(fence, "STATE", tmp_path / "state/fence.json")
    monkeypatch.setattr(fence, "FIREWALL", tmp_path / "golden-firewall")
    (tmp_path / "golden-firewall").touch()
    monkeypatch.setattr(evidence, "LOGS", tmp_path / "log")
    monkeypatch.setattr(evidence, "LISTS", tmp_path / "evidence.d")
    (tmp_path / "evidence.d").mkdir()
    (tmp_path / "evidence.d/15-audit.toml").write_text('[commands]\naudit-rules = ["auditctl", "-l"]\n')
    monkeypatch.setattr(evidence, "HASHED", (str(tmp_path / "etc"),))
    (tmp_path / "log/nginx").mkdir(parents=True)
    (tmp_path / "log/nginx/access.log").write_text("a request\n")
    (tmp_path / "log/link").symlink_to("/etc/shadow")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0\n")
    programs.answer("ss", out="a connection\n")
    programs.answer("auditctl", err="not permitted\n", status=1)
    return programs


@pytest.mark.parametrize(
    ("words", "problem"), [(["x"], "'x' does not appear"), (["0.0.0.0/0"], "everybody"), (["192.0.2.7/24"], "host bits")]
)
def test_what_is_no_network_puts_up_no_fence(words: list[str], problem: str) -> None:
    with pytest.raises(core.Problem, match=problem) as caught:
        fence.networks(words)
    assert caught.value.code == core.USAGE


def test_the_fence_admits_ssh_from_those_named_only() -> None:
    text = fence.rules(fence.networks(["192.0.2.7", "2001:db8::/64"]))
    assert text.count("policy drop") == 3
    assert "        ip saddr 192.0.2.7/32 tcp dport 22 accept\n" in text
    assert "        ip6 daddr 2001:db8::/64 tcp sport 22 accept\n" in text
    # Nothing else is named: no port but SSH's and DHCP's, and no connection because it was there before.
    known = ("ip ", "ip6 ", "icmpv6 ", "meta l4proto udp", "iif lo", "oif lo")
    accepted = [line.strip() for line in text.splitlines() if line.endswith("accept")]
    assert [line for line in accepted if not line.startswith(known)] == []
    assert "established" not in text
    # It replaces one that stands, in one step.
    assert text.startswith("table inet golden_fence\ndelete table inet golden_fence\n")


def test_up_resume_and_down(machine: Programs, tmp_path: Path) -> None:
    assert fence.resume() == {"keep": None}
    assert machine.started == []
    raised = fence.up(["192.0.2.7/32"], reason="a drill")
    assert (raised["reason"], raised["firewall"]) == ("a drill", "closed")
    assert machine.inputs[0] == fence.rules(["192.0.2.7/32"]).encode()
    assert [str(tmp_path / "golden-firewall"), "isolate"] in machine.started
    assert ["add", "element", "inet", "golden", "admin_inet4", "{ 192.0.2.7/32 }"] in machine.named("nft")
    machine.started.clear()
    assert fence.resume()["keep"] == ["192.0.2.7/32"]
    assert len(machine.named("nft")) == 2
    assert fence.down()["released"]["reason"] == "a drill"
    assert machine.inputs[-3] == b"table inet golden_fence\ndelete table inet golden_fence\n"
    assert [str(tmp_path / "golden-firewall"), "release"] in machine.started
    assert fence.standing() is None


def test_a_packet_filter_that_does_not_close_is_told(machine: Programs) -> None:
    machine.answer("isolate", status=1, err="no table\n")
    assert fence.up([], reason="x")["firewall"] == "did not close: no table"


def members(archive: Path) -> dict[str, bytes]:
    """Return the content of the members by their names below the top directory."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream
            assert member.mode & 0o077 == 0 or "/log/" in member.name
            found[member.name.partition("/")[2]] = stream.read()
    return found


def test_the_evidence_is_whole(machine: Programs, tmp_path: Path) -> None:
    result = evidence.collect(reason="a drill", before="seen before\n", directory=tmp_path / "kept")
    archive = Path(result["archive"])
    assert archive.stat().st_mode & 0o777 == 0o600
    assert archive.with_name(f"{archive.name}.sha256").read_text() == f"{result['sha256']}  {archive.name}\n"
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == result["sha256"]
    found = members(archive)
    assert json.loads(found["incident.json"])["reason"] == "a drill"
    assert found["connections-before-the-fence.txt"] == b"seen before\n"
    assert found["connections.txt"] == b"a connection\n"
    assert found["audit-rules.txt"] == b"not permitted\n"
    assert found[str(tmp_path / "log/nginx/access.log").lstrip("/")] == b"a request\n"
    # A link would add the file that it points to.
    assert not [name for name in found if name.endswith("/link")]
    digest = hashlib.sha256(b"root:x:0:0\n").hexdigest()
    assert found["hashes.txt"] == f"{digest}  {tmp_path}/etc/passwd\n".encode()
    lines = [line.partition("  ") for line in found["SHA256SUMS"].decode().splitlines()]
    listed = {name: digest for digest, _blanks, name in lines}
    top = archive.name.removesuffix(".tar.gz")
    assert listed == {
        f"{top}/{name}": hashlib.sha256(content).hexdigest() for name, content in found.items() if name != "SHA256SUMS"
    }
    assert result["members"] == len(listed)


def test_a_full_disk_is_left_alone(machine: Programs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evidence, "SPARE_BYTES", 1 << 60)
    with pytest.raises(core.Problem, match="MiB") as caught:
        evidence.collect(reason="x", before="", directory=tmp_path / "kept")
    assert "--directory" in caught.value.hint
    assert not (tmp_path / "kept").exists()


def test_the_command(machine: Programs, command: Callable[..., Result], tmp_path: Path) -> None:
    shown = command("isolate", "--dry-run", "--keep", "192.0.2.7")
    assert (shown.code, "192.0.2.7/32 tcp dport 22 accept" in shown.out) == (0, True)
    assert machine.started == []
    assert command("isolate", "--status").out == "no fence\n"
    done = command("isolate", "--keep", "192.0.2.7", "--reason", "seen", "--directory", tmp_path / "kept")
    assert done.code == 0
    assert "SSH from: 192.0.2.7/32" in done.out
    assert "evidence: " in done.out
    assert machine.named("logger")[0][-1].endswith(": seen")
    # The connections are looked at before the fence ends them.
    assert machine.started[0][0] == "ss"
    assert command("isolate", "--status").code == core.CHECK_FAILED
    assert command("isolate", "--release").out == "the fence is down\n"
    assert command("isolate", "--keep", "nowhere").code == core.USAGE


def test_without_the_fence_nothing_is_changed(machine: Programs, command: Callable[..., Any], tmp_path: Path) -> None:
    assert command("isolate", "--evidence-only", "--directory", tmp_path / "kept").code == 0
    assert ["-f", "-"] not in machine.named("nft")
    assert machine.named("golden-firewall") == []
    assert fence.standing() is None
