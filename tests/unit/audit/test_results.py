"""The output of the security scanners becomes metrics; an incomplete result is an error and never a good metric."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from build.audit import results, tailoring
from build.audit.auditors import KERNEL_REASONS, SSH_POLICY
from build.audit.ledger import Figure
from build.core.errors import StepFailed

RECORDED = Path(__file__).parents[2] / "data" / "audit"


def recorded(name: str) -> str:
    return (RECORDED / name).read_text(encoding="utf-8")


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


# --- systemd-analyze --------------------------------------------------------------------------------------------------


def test_exposures_are_read_with_their_limits() -> None:
    found = by_name(
        results.exposures(recorded("systemd-analyze.txt"), units={"nginx.service": 0.7, "noexec-shm.service": 2.0})
    )
    assert (found["systemd.nginx.service"].value, found["systemd.nginx.service"].holds) == (0.4, True)
    assert (found["systemd.noexec-shm.service"].value, found["systemd.noexec-shm.service"].holds) == (9.5, False)


def test_a_unit_that_systemd_does_not_know_is_an_error() -> None:
    with pytest.raises(StepFailed, match="no result for absent"):
        results.exposures(recorded("systemd-analyze.txt"), units={"absent.service": 2.0})


# --- OpenSCAP ---------------------------------------------------------------------------------------------------------


def test_what_broke_off_counts_as_failed_and_what_has_no_check_not_at_all() -> None:
    scan = results.scan(recorded("xccdf-result.xml"))
    assert scan.having("pass") == {"disable_prelink", "partition_for_dev_shm", "partition_for_tmp"}
    assert "file_ownerships_var_log" in scan.failing
    assert "accounts_password_pam_pwquality_enabled" not in scan.judged
    assert len(scan.judged) == 7
    assert len(scan.selected) == 11


def test_compliance_of_the_published_and_of_the_tailored_profile() -> None:
    raw = results.scan(recorded("xccdf-result.xml"))
    exceptions = ("aide_build_database", "package_aide_installed")
    found = by_name(results.compliance(raw, exceptions))
    assert (found["cis.raw"].value, found["cis.raw"].text) == (42.86, "42.9 % (3 of 7)")
    assert (found["cis.tailored"].value, found["cis.tailored"].text) == (60.0, "60.0 % (3 of 5)")
    assert found["cis.judged"].text == "7 rules, 3 not applicable"
    assert found["cis.unchecked"].items == ("accounts_password_pam_pwquality_enabled",)
    assert found["cis.profile"].value == 11
    assert set(found["cis.tailored"].items) == raw.failing - set(exceptions)


def test_an_exception_that_nothing_needs_fails_the_audit() -> None:
    raw = results.scan(recorded("xccdf-result.xml"))
    found = by_name(results.compliance(raw, ["disable_prelink"]))["cis.idle exceptions"]
    assert found.items == ("disable_prelink",)
    assert not found.holds


# --- lynis, ssh-audit, testssl.sh -------------------------------------------------------------------------------------


def test_lynis() -> None:
    found = by_name(results.lynis(recorded("lynis-report.dat")))
    assert (found["lynis.index"].value, found["lynis.index"].text) == (66, "66 (251 tests)")
    assert found["lynis.warnings"].items == ("KRNL-5830 Reboot of system is most likely needed",)
    assert "SSH-7408 Consider hardening SSH configuration (MaxAuthTries (set 4 to 3))" in found["lynis.suggestions"].items
    assert not found["lynis.warnings"].holds


def test_a_policy_that_failed_names_what_did_not_match() -> None:
    (found,) = results.ssh_policy(recorded("ssh-audit.json"), policy=SSH_POLICY)
    assert not found.holds
    assert any(item.startswith("Host keys: is ssh-ed25519,ecdsa-sha2-nistp256, should be") for item in found.items)


def test_a_policy_that_passed() -> None:
    document = json.dumps({"policy": SSH_POLICY, "passed": True, "errors": []})
    (found,) = results.ssh_policy(document, policy=SSH_POLICY)
    assert found.holds
    assert found.items == ()


def test_tls_grade_and_findings() -> None:
    found = by_name(results.tls(recorded("testssl.json")))
    assert (found["tls.grade"].text, found["tls.grade"].holds) == ("A+", True)
    assert found["tls.score"].value == 96
    # A finding about the host's own OpenSSL is none about the image.
    assert found["tls.findings"].items == ("cert_revocation (HIGH)",)


@pytest.mark.parametrize(("grade", "holds"), [("A+", True), ("A", False), ("A-", False), ("T", False)])
def test_only_the_best_grade_holds(grade: str, *, holds: bool) -> None:
    document = recorded("testssl.json").replace('"A+"', f'"{grade}"')
    assert by_name(results.tls(document))["tls.grade"].holds is holds


def by_policy(document: str) -> object:
    return results.ssh_policy(document, policy=SSH_POLICY)


@pytest.mark.parametrize(
    ("read", "document"),
    [
        (results.scan, "<Benchmark"),
        (results.scan, "<Benchmark/>"),
        (results.lynis, "hardening_index=99\n"),
        (results.lynis, ""),
        (by_policy, "cannot connect"),
        (by_policy, '{"policy": "another", "passed": true, "errors": []}'),
        (results.tls, "[]"),
        (results.tls, "{}"),
        (results.tls, ""),
    ],
)
def test_a_result_that_is_not_whole_is_an_error(read: Callable[[str], object], document: str) -> None:
    with pytest.raises(StepFailed):
        read(document)


def test_a_scan_that_judged_nothing_is_an_error() -> None:
    text = recorded("xccdf-result.xml")
    for result in ("pass", "fail", "error", "notchecked"):
        text = text.replace(f"<result>{result}<", "<result>notapplicable<")
    with pytest.raises(StepFailed, match="checked no rule"):
        results.scan(text)


# --- kernel-hardening-checker -----------------------------------------------------------------------------------------


def kernel_document(*checks: tuple[str, str, str]) -> str:
    return json.dumps([{"option_name": name, "type": kind, "check_result": result} for name, kind, result in checks])


KERNEL = kernel_document(
    ("kernel.kptr_restrict", "sysctl", "OK"), ("user.max_user_namespaces", "sysctl", "FAIL: 1"),
    ("pti", "cmdline", "FAIL: is not found"),
    ("slab_nomerge", "cmdline", "OK: is present"), ("CONFIG_X", "kconfig", "FAIL"),
)  # fmt: skip


def test_kernel_figures() -> None:
    figures = {one.name: one for one in results.kernel(results.kernel_checks(KERNEL), {"pti", "gone"})}
    assert (figures["kernel.sysctl"].value, figures["kernel.sysctl"].shown) == (50.0, "50.0 % (1 of 2)")
    assert figures["kernel.command line"].items == ("pti",)
    for name, item in (("unexplained", "user.max_user_namespaces"), ("idle exceptions", "gone")):
        assert (figures[f"kernel.{name}"].items, figures[f"kernel.{name}"].holds) == ((item,), False)


@pytest.mark.parametrize("document", ["", "{}", "[1]", '[{"type": "sysctl"}]'])
def test_no_result_of_the_kernel_checker(document: str) -> None:
    with pytest.raises(StepFailed):
        results.kernel(results.kernel_checks(document), ())


def test_a_kind_that_was_not_checked_is_an_error() -> None:
    with pytest.raises(StepFailed, match="nothing of the kind cmdline"):
        results.kernel(results.kernel_checks(kernel_document(("kernel.kptr_restrict", "sysctl", "OK"))), ())


def test_the_committed_reasons_can_be_read() -> None:
    assert len(tailoring.load(Path(__file__).parents[3] / "tests" / "audit" / KERNEL_REASONS)) > 10
