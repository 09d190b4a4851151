"""The field's auditors, one function each: run it against a place, keep what it wrote, return its figures."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from build.audit import results
from build.audit import tailoring as audit_tailoring
from build.audit import tools as audit_tools
from build.audit.ledger import Figure
from build.audit.tools import DATASTREAM, HOME, Tools
from build.core import host, run
from build.core.errors import StepFailed
from build.machines.target import LOOPBACK, Target
from build.spec.layers import Stack

UNITS = "/etc/systemd/system/"
# What the image promises; every other unit of Goldsmith: OURS. A unit that a layer only changes is watched by the ledger.
LIMITS = {"nginx.service": 0.7, "gunicorn.service": 0.3, "postgresql@17-main.service": 0.5, "golden-deploy.service": 1.9}
OURS = 1.5
SSH_POLICY = "Hardened Debian 13 (version 1)"
# In seconds on a machine with KVM.
# Emulated and alone on two processors, CIS and lynis take 22 and 24 minutes; beside another machine twice that.
SCAN_SECONDS = 600
TLS_SECONDS = 900
SSH_SECONDS = 60
SETTLE_SECONDS = 300
CERTIFICATE_SECONDS = 120
# An address for documentation (RFC 5737), and the authorities that Debian knows.
ABSENT, AUTHORITIES = "192.0.2.1", "/etc/ssl/certs/ca-certificates.crt"
# Longer than testssl.sh's idea of "expires soon".
CERTIFICATE_DAYS = 90
OSCAP_FAILED_RULES = 2
KERNEL_REASONS = "kernel-exceptions.conf"
# Its package is not on the path of this Python: what is run is its own entry point.
CHECKER = "import sys; sys.path.insert(0, sys.argv.pop(1)); import kernel_hardening_checker as checker; checker.main()"
# What the two long ones say while they work: a result for each rule, a heading for each section.
_RULE = re.compile(r"^Result\t", re.MULTILINE)
_SECTION = re.compile(r"^\[\+\] (.+)$", re.MULTILINE)

HOST_TOOLS = (
    host.Tool("openssl", "openssl", "make the clone's certificate for the TLS audit"),
    host.Tool("hexdump", "bsdextrautils", "let testssl.sh read what a server answers"),
    host.Tool("host", "bind9-host", "let testssl.sh start; it resolves no name"),
    host.Tool("dpkg-deb", "dpkg", "unpack the auditors"),
)


@dataclass(frozen=True)
class Job:
    """What every auditor works with: the place, the unpacked tools, and where its output is kept."""

    place: Target
    tools: Tools
    out: Path
    scratch: Path
    stack: Stack
    server_name: str
    tailoring: Path


def settle(place: Target) -> None:
    """Wait until the machine has done what its first boot began in the background: the data base of AIDE takes a while."""
    busy = "systemctl list-jobs --no-legend | grep -q . || systemctl is-active --quiet golden-aide-first.service"
    place.shell(f"while {busy}; do sleep 1; done", timeout=SETTLE_SECONDS)


def furnish(place: Target) -> None:
    """Give the machine what every operator's machine has and no image can have: a collector of its logs, which is away."""
    text = f"log_collector: {{host: {ABSENT}, protocol: syslog, ca: {AUTHORITIES}, peer: collector.example.org}}"
    place.shell(
        f"echo '{text}' >/etc/golden/site.yaml && systemctl restart golden-site.service golden-logs.service",
        timeout=SETTLE_SECONDS,
    )


def let_in(place: Target) -> None:
    """End the bans: an auditor behaves like an attacker, and would be treated like one."""
    place.shell("systemctl stop fail2ban.service", check=False)


def units(stack: Stack) -> dict[str, float | None]:
    """Return the service units that the layers bring (with their limit) or change (without one)."""
    found: dict[str, float | None] = {}
    for node in stack.below([UNITS]):
        first, _, rest = node.path.removeprefix(UNITS).partition("/")
        if node.kind != "file":
            continue
        if not rest and first.endswith(".service"):
            found[_instance(first)] = LIMITS.get(first, OURS)
        # A drop-in directory of a prefix (golden-.service.d) belongs to no single unit.
        elif first.endswith(".service.d") and not first.endswith("-.service.d"):
            name = _instance(first.removesuffix(".d"))
            found.setdefault(name, LIMITS.get(name))
    return found


def _instance(unit: str) -> str:
    return unit.replace("@.", "@audit.")


def systemd(job: Job) -> list[Figure]:
    """Ask systemd how exposed our services are."""
    limits = units(job.stack)
    words = shlex.join(["systemd-analyze", "security", "--no-pager", *sorted(limits)])
    done = job.place.shell(words, timeout=SCAN_SECONDS, output=job.out / "systemd.log")
    return results.exposures(done.stdout, units=limits)


def cis(job: Job) -> list[Figure]:
    """Check by the CIS profile for servers, level 2: as it is published, and without the rules that we except.

    One evaluation is enough: the tailoring only leaves rules out. oscap validates it, so that others can use it.
    """
    raw = results.scan(_oscap(job, "raw", "--profile", audit_tailoring.BASE_PROFILE))
    exceptions = audit_tailoring.load(job.tailoring)
    document = audit_tailoring.render(
        exceptions, datastream=f"{HOME}/{DATASTREAM}", time=datetime.now(UTC).isoformat(timespec="seconds")
    )
    (job.out / "tailoring.xml").write_text(document)
    audit_tailoring.check(exceptions, selected=raw.selected, path=job.tailoring)
    job.place.send(job.out, ["tailoring.xml"], target=HOME, output=job.out / "send.log")
    oscap = f"{audit_tools.environment()} {HOME}/usr/bin/oscap"
    job.place.shell(f"{oscap} xccdf validate --skip-schematron {HOME}/tailoring.xml")
    return results.compliance(raw, exceptions)


def _oscap(job: Job, name: str, *options: str) -> str:
    """Run one evaluation on the place; return its result file, which is kept too."""
    result = f"{HOME}/{name}.xml"
    words = shlex.join([f"{HOME}/usr/bin/oscap", "xccdf", "eval", *options, "--results", result, f"{HOME}/{DATASTREAM}"])
    output = job.out / f"cis-{name}.log"
    status = job.place.watch(
        f"cd / && {audit_tools.environment()} {words}", title="oscap", timeout=SCAN_SECONDS, output=output,
        tell=lambda output: f"{len(_RULE.findall(output))} rules checked",
    )  # fmt: skip
    if status not in (0, OSCAP_FAILED_RULES):
        raise StepFailed("oscap could not evaluate the profile", details=run.tail(output.read_text(errors="replace")))
    document = job.place.read(result)
    (job.out / f"cis-{name}.xml").write_text(document)
    return document


def lynis(job: Job) -> list[Figure]:
    """Let lynis look around. It finds its own files from its working directory only."""
    report = f"{HOME}/lynis-report.dat"
    words = shlex.join([
        f"{HOME}/usr/sbin/lynis", "audit", "system", "--quick", "--no-colors",
        "--profile", f"{HOME}/etc/lynis/default.prf", "--plugindir", f"{HOME}/etc/lynis/plugins",
        "--logfile", f"{HOME}/lynis.log", "--report-file", report,
    ])  # fmt: skip
    command = f"cd {HOME}/usr/share/lynis && {audit_tools.PATH} LC_ALL=C.UTF-8 {words}"
    # Its exit status counts warnings (lynis(8)); whether it came to its end is read from the report.
    job.place.watch(
        command, title="lynis", timeout=SCAN_SECONDS, output=job.out / "lynis.log",
        tell=lambda said: (_SECTION.findall(said) or ["starting"])[-1].lower(),
    )  # fmt: skip
    document = job.place.read(report)
    (job.out / "lynis-report.dat").write_text(document)
    return results.lynis(document)


def kernel(job: Job) -> list[Figure]:
    """Compare the running kernel's settings and command line with kernel-hardening-checker's, on the host.

    Only the texts come from the machine: the checker is Python without dependencies.
    """
    texts = {
        "sysctl": "sysctl --all 2>/dev/null", "cmdline": "cat /proc/cmdline", "version": "cat /proc/version",
        "config": "cat /boot/config-$(uname -r)",
    }  # fmt: skip
    for name, command in texts.items():
        content = job.place.shell(command, timeout=SSH_SECONDS, check=name != "sysctl").stdout
        (job.out / f"kernel-{name}").write_text(content)
    reasons = audit_tailoring.load(job.tailoring.with_name(KERNEL_REASONS))
    checks: list[dict[str, str]] = []
    of = {name: str(job.out / f"kernel-{name}") for name in texts}
    for options in (["-s", of["sysctl"]], ["-c", of["config"], "-l", of["cmdline"], "-v", of["version"]]):
        home = job.tools.program(audit_tools.CHECKER).parents[1]
        words = [sys.executable, "-I", "-c", CHECKER, str(home), "-m", "json", *options]
        done = run.run(words, timeout=SSH_SECONDS, log=job.out / "kernel.log")
        checks += results.kernel_checks(done.stdout)
    return results.kernel(checks, reasons)


def ssh(job: Job) -> list[Figure]:
    """Hold sshd against ssh-audit's policy for a hardened Debian 13."""
    let_in(job.place)
    words = job.place.program(
        sys.executable, "-m", "ssh_audit", "--json", "--skip-rate-test", "--timeout", str(round(5 * job.place.scale)),
        "--policy", SSH_POLICY, "--port", str(job.place.ports["ssh"]), LOOPBACK,
    )  # fmt: skip
    done = run.run(words, timeout=SSH_SECONDS * job.place.scale, check=False, log=job.out / "ssh-audit.log")
    (job.out / "ssh-audit.json").write_text(done.stdout)
    return results.ssh_policy(done.stdout or done.stderr, policy=SSH_POLICY)


def tls(job: Job) -> list[Figure]:
    """Let testssl.sh grade the web server, which gets a certificate of an authority that lives as long as the audit."""
    let_in(job.place)
    authority = give_certificate(job.place, job.server_name, job.scratch / "ca", log=job.out / "send.log")
    home = job.tools.program("etc/testssl")
    report = job.out / "testssl.json"
    report.unlink(missing_ok=True)
    words = job.place.program(
        "env", f"TESTSSL_INSTALL_DIR={home}", f"CA_BUNDLES_PATH={home}", "bash", job.tools.program("usr/bin/testssl"),
        "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--ip", LOOPBACK, "--add-ca", authority,
        "--connect-timeout", str(round(5 * job.place.scale)), "--openssl-timeout", str(round(5 * job.place.scale)),
        "--jsonfile", report, f"{job.server_name}:{job.place.ports['https']}",
    )  # fmt: skip
    run.run(words, timeout=TLS_SECONDS * max(1.0, job.place.scale / 2), check=False, log=job.out / "testssl.log")
    if not report.exists():
        raise StepFailed("testssl.sh wrote no report", hint=f"see {job.out / 'testssl.log'}")
    return results.tls(report.read_text())


def give_certificate(place: Target, name: str, directory: Path, *, log: Path) -> Path:
    """Make an authority, let the machine trust it, give the web server a certificate of it; return the authority's.

    What an operator does, in the operator's way: a certificate is checked and installed, a scan is good, then browsers
    may insist on HTTPS for two years. Without that no server is graded A+.
    """
    directory.mkdir(parents=True, exist_ok=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    (directory / "extensions").write_text(
        f"subjectAltName=DNS:{name}\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=serverAuth\n"
    )
    steps: tuple[list[str], ...] = (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "90", "-subj", "/CN=audit",
         "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"],
        ["req", *key, "-keyout", "app.key", "-out", "app.csr", "-subj", f"/CN={name}"],
        ["x509", "-req", "-in", "app.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "app.pem",
         "-days", str(CERTIFICATE_DAYS), "-extfile", "extensions"],
    )  # fmt: skip
    for step in steps:
        run.run(["openssl", *step], timeout=run.LOCAL_SECONDS, cwd=directory)
    place.send(directory, ["ca.pem", "app.pem", "app.key"], target=f"{HOME}/tls", output=log)
    commands = (
        f"install -m 0644 {HOME}/tls/ca.pem /usr/local/share/ca-certificates/audit.crt",
        "update-ca-certificates",
        f"golden-certificate install --certificate {HOME}/tls/app.pem --key {HOME}/tls/app.key",
        "golden-certificate hsts --on",
    )
    place.shell(" && ".join(commands), timeout=CERTIFICATE_SECONDS, output=log)
    return directory / "ca.pem"


AUDITORS: dict[str, Callable[[Job], list[Figure]]] = {
    "systemd": systemd, "kernel": kernel, "cis": cis, "lynis": lynis, "ssh": ssh, "tls": tls,
}  # fmt: skip
