"""The two logs of an installation are parsed: excerpts of real ones, as recorded from the serial ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.disk.console import LAST_STEP, STEPS, Console, Event, Growing, Kind, Syslog, Watch

DATA = Path(__file__).parents[2] / "data" / "console"


def events(name: str) -> list[Event]:
    """Return what a watch sees in the two logs ``NAME-console.log`` and ``NAME-syslog.log``."""
    return list(Watch(console=DATA / f"{name}-console.log", syslog=DATA / f"{name}-syslog.log").poll())


def test_a_good_installation_passes_every_step_and_powers_off() -> None:
    found = events("good")
    assert [event.text for event in found if event.kind is Kind.STEP] == list(STEPS.values())
    assert found[-1].kind is Kind.POWER_OFF
    assert {event.kind for event in found} == {Kind.STEP, Kind.POWER_OFF}


def test_finishing_is_the_last_step() -> None:
    assert list(STEPS.values())[-1] == LAST_STEP


def test_a_failed_step_is_told_with_what_it_said() -> None:
    found = [event for event in events("failed") if event.kind is not Kind.STEP]
    assert [event.kind for event in found] == [Kind.FAILED, Kind.FAILED]
    in_syslog, on_console = found
    assert in_syslog.text == "Configuring 'goldsmith-boot' failed with error code 1"
    assert "goldsmith-boot: cannot find EFI directory." in in_syslog.details
    assert on_console.text == "Installation step failed"
    assert "The failing step is: Make the" in on_console.details


def test_a_question_is_told_with_its_title_and_choices() -> None:
    found = [event for event in events("question") if event.kind is not Kind.STEP]
    assert [(event.kind, event.text) for event in found] == [(Kind.QUESTION, "Partition disks")]
    assert "Continue with the installation?" in found[0].details
    assert "1: Yes      2: No [*]" in found[0].details


def test_a_panic_is_told_in_the_kernels_words() -> None:
    found = [event for event in events("panic") if event.kind is not Kind.STEP]
    assert {event.kind for event in found} == {Kind.PANIC}
    assert found[0].text == "Kernel panic - not syncing: sysrq triggered crash"
    assert "sysrq: Trigger a crash" in found[0].details


@pytest.mark.parametrize(
    "line",
    [
        # Seen under QEMU 7.2 without KVM.
        "[   31.337000] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI",
        "[   12.000000] BUG: unable to handle page fault for address: ffffffffc0000000 [#1] PREEMPT SMP",
        "[    9.100000] Oops: double fault: 0000 [#1] PREEMPT SMP NOPTI",
        "[    9.100000] Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#2] SMP",
        "[    1.000000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
    ],
)
def test_a_kernel_that_died_is_a_panic(line: str) -> None:
    event = Console().feed(line)
    assert event is not None
    assert event.kind is Kind.PANIC


@pytest.mark.parametrize(
    "line",
    [
        "[    0.429000] Oops=panic is not set",
        "[   60.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [tar:1234]",
        "[   60.000000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "Partitions formatting  ... 33%",
        "  1: Yes      2: No [*]",
        "",
    ],
)
def test_ordinary_lines_mean_nothing(line: str) -> None:
    """A slow host makes the kernel complain; that alone is no reason to give up."""
    assert Console().feed(line) is None


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "Nov 22 05:00:00 finish-install: warning: /usr/lib/finish-install.d/90seal returned error code 1",
            "warning: /usr/lib/finish-install.d/90seal returned error code 1",
        ),
        ("Nov 22 05:00:00 base-installer: error: Could not find any live images", "error: Could not find any live images"),
    ],
)
def test_a_script_that_failed_on_the_way_fails_the_installation(line: str, text: str) -> None:
    assert Syslog().feed(line) == Event(Kind.FAILED, text, line.partition("00 ")[2])
    assert Syslog(strict=False).feed(line) is None


def test_information_of_the_installer_is_no_failure() -> None:
    assert Syslog().feed("Nov 22 05:00:00 base-installer: info: Using squashfs support") is None
    assert Syslog().feed("Nov 22 05:00:00 finish-install: info: Running /usr/lib/finish-install.d/90seal") is None


def test_an_unknown_menu_item_is_a_step_by_its_own_name() -> None:
    event = Syslog().feed("Nov  2 05:00:00 main-menu[215]: INFO: Menu item 'pkgsel' selected")
    assert event == Event(Kind.STEP, "pkgsel")


# --- files that grow --------------------------------------------------------------------------------------------------


def test_a_line_is_handed_out_once_and_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    growing = Growing(path)
    assert growing.lines() == []
    path.write_bytes(b"one\r\ntwo")
    assert growing.lines() == ["one"]
    assert growing.unfinished == "two"
    with path.open("ab") as stream:
        stream.write(b" and a half\r\nthr")
    assert growing.lines() == ["two and a half"]
    assert growing.lines() == []
    assert growing.position == path.stat().st_size


def test_what_was_written_over_is_not_seen(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"10%\r20%\r30%\r\n")
    assert Growing(path).lines() == ["30%"]


def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"\xff\xfe broken\n")
    assert Growing(path).lines()[0].endswith(" broken")


@pytest.mark.parametrize("prompt", ["Prompt: '?' for help>", "[Press enter to continue]", "Password: "])
def test_a_prompt_without_end_of_line_is_seen_once(tmp_path: Path, prompt: str) -> None:
    console = tmp_path / "console.log"
    watch = Watch(console=console, syslog=tmp_path / "syslog.log")
    console.write_bytes(b"Partition disks\r\n---------------\r\nContinue?\r\n" + prompt.encode())
    assert [(event.kind, event.text) for event in watch.poll()] == [(Kind.QUESTION, "Partition disks")]
    assert list(watch.poll()) == []


def test_the_system_log_is_told_first(tmp_path: Path) -> None:
    """Otherwise a question would be reported with the step before the one that asks it."""
    console, syslog = tmp_path / "console.log", tmp_path / "syslog.log"
    console.write_text("Prompt: '?' for help>")
    syslog.write_text("Nov 22 05:00:00 main-menu[215]: INFO: Menu item 'partman-base' selected\n")
    assert [event.kind for event in Watch(console=console, syslog=syslog).poll()] == [Kind.STEP, Kind.QUESTION]


def test_signs_of_life_are_counted(tmp_path: Path) -> None:
    console, syslog = tmp_path / "console.log", tmp_path / "syslog.log"
    watch = Watch(console=console, syslog=syslog)
    assert (list(watch.poll()), watch.heard) == ([], 0)
    console.write_text("1234")
    syslog.write_text("12\n")
    assert (list(watch.poll()), watch.heard) == ([], 7)
