"""What the user sees: steps with durations, warnings, a bar on a terminal, one JSON object a line for programs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

import pytest

from build.core import log


class Terminal(io.StringIO):
    """A stream that reports that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_again() -> Iterator[None]:
    yield
    log.configure()


def plain(*, verbose: bool = False, json_lines: bool = False) -> io.StringIO:
    stream = io.StringIO()
    log.configure(stream=stream, verbose=verbose, json_lines=json_lines)
    return stream


def test_diagnostics_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("a line")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a line\n")


def test_a_step_nests_what_it_says_and_tells_its_duration() -> None:
    stream = plain()
    with log.step("Doing it", done="done with it"):
        log.info("inside")
        with log.step("A part"):
            log.warn("look")
    log.info("outside")
    assert re.sub(r"[0-9.]+ s", "N s", stream.getvalue()).splitlines() == [
        "• Doing it",
        "  inside",
        "  • A part",
        "    warning: look",
        "    done (N s)",
        "  done with it (N s)",
        "outside",
    ]


def test_a_step_that_fails_never_says_done() -> None:
    stream = plain()
    with pytest.raises(ValueError, match="broken"), log.step("Doing it", done="done with it"):
        raise ValueError("broken")
    assert "done with it" not in stream.getvalue()
    assert "[Doing it stopped after 0.0 s]" in stream.getvalue()


def test_an_error_stands_at_the_margin() -> None:
    stream = plain()
    with log.step("Doing it"):
        log.error("brief\n  -> hint")
    assert "\nerror: brief\n  -> hint\n" in stream.getvalue()


def test_debug_is_said_only_when_asked_for() -> None:
    quiet = plain()
    log.debug("detail")
    assert quiet.getvalue() == ""
    loud = plain(verbose=True)
    log.debug("detail")
    assert loud.getvalue() == "detail\n"


def test_json_lines_carry_the_same_events() -> None:
    stream = plain(json_lines=True)
    with log.step("Doing it"):
        log.warn("with Ünicode")
    log.debug("always there")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["kind"], event["text"]) for event in events][:2] == [
        ("begin", "• Doing it"),
        ("warning", "warning: with Ünicode"),
    ]
    assert [event["kind"] for event in events][2:] == ["end", "debug"]
    assert events[2]["seconds"] >= 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "0.0 s"), (7.25, "7.2 s"), (59.9, "59.9 s"), (60, "1 min 00 s"), (185.4, "3 min 05 s")]
)
def test_durations_for_people(value: float, text: str) -> None:
    assert log.seconds(value) == text


def test_progress_without_a_terminal_speaks_on_change_and_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = plain(), [100.0]
    monkeypatch.setattr("build.core.log.time.monotonic", lambda: now[0])
    progress = log.Progress("installing", expected=100.0)
    for moment, text in ((101.0, "one"), (102.0, "one"), (103.0, "two"), (120.0, "two"), (134.0, "two")):
        now[0] = moment
        progress.update(text)
    progress.finish()
    assert stream.getvalue().splitlines() == [
        "installing:   1 % one (1.0 s of about 1 min 40 s)",
        "installing:   3 % two (3.0 s of about 1 min 40 s)",
        "installing:  34 % two (34.0 s of about 1 min 40 s)",
    ]


def test_progress_never_claims_to_be_done_by_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = plain(), [0.0]
    monkeypatch.setattr("build.core.log.time.monotonic", lambda: now[0])
    progress = log.Progress("installing", expected=10.0)
    now[0] = 50.0
    progress.update("still at it")
    assert " 99 % still at it" in stream.getvalue()


def test_a_bar_on_a_terminal_gives_way_to_lines_and_is_taken_away() -> None:
    stream = Terminal()
    log.configure(stream=stream)
    progress = log.Progress("fetching")
    progress.update("half", 0.5)
    log.info("a line")
    progress.finish()
    shown = stream.getvalue()
    assert "fetching ████████████░░░░░░░░░░░░  50 %  half" in shown
    erased = "\r\x1b[2K"
    assert f"{erased}a line\nfetching" in shown, "the bar is drawn again below the line"
    assert shown.endswith(erased)
