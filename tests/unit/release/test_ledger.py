"""The ledger of releases: tampering is detected and located by line; the state that it describes; its rebuilding."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from build.core.errors import SpecError
from build.release import mirror
from build.release import state as release_state
from build.release.entry import NOTHING_BEFORE, Action, Assignment, Entry, Gap, Phase, assignment, one_line
from build.release.ledger import Ledger, LedgerError, LedgerFile, parse, rebuilt, salvaged

BEGIN = datetime(2026, 11, 20, tzinfo=UTC)
VERSIONS = tuple(Assignment(f"1.{minor}.0", f"{minor:x}" * 64) for minor in range(1, 6))


def entry(ledger: Ledger, subject: Assignment = VERSIONS[0], **changes: Any) -> Entry:
    facts: dict[str, Any] = {
        "who": "Jane <jane@example.org>", "action": Action.PROMOTE, "phase": Phase.DONE, "channel": "stable",
        "version": subject.version, "digest": subject.digest, "reason": "tests",
    }  # fmt: skip
    return ledger.next(BEGIN + timedelta(minutes=ledger.head), **(facts | changes))


def of_length(length: int) -> Ledger:
    ledger = Ledger()
    for number in range(length):
        phase = Phase.INTENT if number % 2 == 0 else Phase.DONE
        ledger = ledger.follow(entry(ledger, VERSIONS[number // 2 % len(VERSIONS)], phase=phase))
    return ledger


def problems(text: str) -> list[str]:
    with pytest.raises(LedgerError) as caught:
        parse(text, "releases.jsonl")
    assert caught.value.exit_code == 3
    assert "--rebuild" in caught.value.hint
    return caught.value.details.splitlines()


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read() -> None:
    ledger = of_length(7)
    again = parse(ledger.text(), "x")
    assert again.entries == ledger.entries
    assert (again.head, again.head_hash, again.gaps) == (7, ledger.entries[-1].hash, ())
    assert ledger.entries[0].previous == NOTHING_BEFORE


def test_an_empty_ledger() -> None:
    assert (parse("", "x").head, parse("", "x").head_hash) == (0, NOTHING_BEFORE)


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Entry)])
def test_every_field_that_is_edited_is_found(field: str) -> None:
    lines = of_length(5).text().splitlines(keepends=True)
    facts = json.loads(lines[2])
    facts[field] = facts[field] + 7 if field == "number" else {
        "action": "revoke", "phase": "done", "time": "2026-11-20T00:02:01Z"
    }.get(field, f"{facts[field]}x")  # fmt: skip
    lines[2] = json.dumps(facts) + "\n"
    found = problems("".join(lines))
    assert found[0].startswith("line 3: it was modified")


def test_an_edit_with_a_new_hash_is_found_in_the_next_line() -> None:
    ledger = of_length(5)
    other = dataclasses.replace(ledger.entries[2], who="Joe")
    lines = [one.line() for one in ledger.entries]
    named = f"the hash of that line is {other.hash[:12]}, not {ledger.entries[2].hash[:12]}"
    found = problems("".join([*lines[:2], other.line(), *lines[3:]]))
    assert found == [f"line 4: it does not follow the line before: {named}"]


def test_each_way_to_tamper_names_its_line() -> None:
    lines = of_length(6).text().splitlines(keepends=True)
    assert problems("".join([*lines[:2], *lines[3:]])) == ["line 3: entry 3 is missing before it"]
    assert problems("".join([*lines[:1], *lines[4:]])) == ["line 2: entries 2 to 4 are missing before it"]
    assert problems("".join([*lines[:3], lines[2], *lines[3:]]))[0].startswith("line 4: entry 3 comes after entry 3")
    swapped = problems("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert swapped[0] == "line 2: entry 2 is missing before it"
    assert swapped[1].startswith("line 3: entry 2 comes after entry 3")
    assert problems("".join(lines)[:-9])[0] == "line 6: it is truncated: the end of the line is missing"
    assert problems("".join([*lines[:2], "\n", *lines[3:]]))[0] == "line 3: it is not JSON"
    assert problems("".join([*lines[:2], "[]\n", *lines[3:]]))[0] == "line 3: it is not an entry of a ledger"
    assert problems("".join([*lines, '{"missing":[9,7],"hash":"' + "0" * 64 + '"}\n']))[0].startswith("line 7: ")


def test_an_entry_that_is_older_than_the_one_before() -> None:
    ledger = of_length(2)
    older = dataclasses.replace(entry(ledger), time="2020-01-01T00:00:00Z")
    assert problems(ledger.text() + older.line()) == [
        "line 3: it is of 2020-01-01T00:00:00Z, and the line before of 2026-11-20T00:01:00Z"
    ]


def test_whatever_is_done_to_the_bytes_is_found() -> None:
    """A thousand random edits: none of them reads as a ledger, unless it cuts whole lines off the end."""
    chance = random.Random(5)
    text = of_length(6).text()
    ends = {0, *(number + 1 for number, letter in enumerate(text) if letter == "\n")}
    for _ in range(1000):
        at = chance.randrange(len(text))
        kind = chance.randrange(3)
        if kind == 0:
            letter = chance.choice([one for one in 'abc019"{}:,\n' if one != text[at]])
            changed = text[:at] + letter + text[at + 1 :]
        elif kind == 1:
            changed = text[:at] + text[at + chance.randrange(1, 40) :]
        else:
            changed = text[:at] + chance.choice("xyz0\n") + text[at:]
        if changed == text or (text.startswith(changed) and len(changed) in ends):
            continue
        with pytest.raises(LedgerError):
            parse(changed, "x")


def test_every_order_but_the_right_one_is_found() -> None:
    chance = random.Random(6)
    lines = of_length(6).text().splitlines(keepends=True)
    for _ in range(200):
        mixed = chance.choices(lines, k=chance.randrange(1, 8))
        if mixed != lines[: len(mixed)]:
            with pytest.raises(LedgerError):
                parse("".join(mixed), "x")


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_grows_by_entries_that_follow(tmp_path: Path) -> None:
    book = LedgerFile(tmp_path / "artifacts" / "releases.jsonl")
    assert (book.exists(), book.read().head) == (False, 0)
    first = entry(book.read())
    assert book.append(first).head == 1
    assert book.append(first).head == 1
    with pytest.raises(LedgerError, match="was modified concurrently"):
        book.append(dataclasses.replace(entry(book.read()), number=5))
    assert book.append(entry(book.read())).head == 2
    assert book.path.read_text() == book.read().text()


def test_many_writers_of_one_host(tmp_path: Path) -> None:
    book = LedgerFile(tmp_path / "releases.jsonl")

    def write() -> None:
        for _ in range(5):
            with book.held():
                book.append(entry(book.read()))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert book.read().head == 20


def test_what_is_proposed_is_kept_apart(tmp_path: Path) -> None:
    book = LedgerFile(tmp_path / "releases.jsonl")
    one = entry(book.read())
    book.propose(one)
    assert (book.proposed(), book.read().head) == (one, 0)
    book.append(one)
    assert book.proposed() is None
    book.propose(entry(book.read()))
    book.withdraw()
    assert book.proposed() is None
    (tmp_path / ".releases.jsonl.pending").write_text("half an ent")
    assert book.proposed() is None


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    book = LedgerFile(tmp_path / "releases.jsonl")
    book.path.write_bytes(b"\xff\xfe")
    with pytest.raises(LedgerError, match="is not UTF-8 text"):
        book.read()


def test_a_clock_that_went_back(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = of_length(2)
    facts = {"who": "x", "action": Action.REVOKE, "phase": Phase.DONE, "channel": "", "version": "1", "digest": "0"}
    made = ledger.next(BEGIN - timedelta(days=9), **facts)
    assert made.time == ledger.last_time
    assert "the clock of this host is at 2026-11-11T00:00:00Z" in capsys.readouterr().err
    assert parse(ledger.follow(made).text(), "x").head == 3


@pytest.mark.parametrize("text", ["two\nlines", "x" * 301, "a\x1b[31mb", "a\tb"])
def test_a_reason_is_one_line(text: str) -> None:
    with pytest.raises(SpecError, match="--reason"):
        one_line("--reason", text)
    assert one_line("--reason", "  ünïcode is fine ") == "ünïcode is fine"


# --- rebuilding -------------------------------------------------------------------------------------------------------


def test_whatever_is_lost_is_named_and_the_rest_stands() -> None:
    chance = random.Random(7)
    whole = of_length(9)
    for _ in range(200):
        kept = [one for one in whole.entries if chance.random() < 0.6]
        chance.shuffle(kept)
        made, dropped = rebuilt(kept, trusted=kept)
        assert dropped == []
        assert parse(made.text(), "x").lines == made.lines
        assert set(made.entries) == set(kept)
        lost = {number for gap in made.gaps for number in range(gap.first, gap.number + 1)}
        newest = max((one.number for one in kept), default=0)
        assert lost == {one.number for one in whole.entries if one not in kept and one.number < newest}


def test_after_a_gap_the_chain_goes_on() -> None:
    whole = of_length(5)
    made, _ = rebuilt(whole.entries[3:], trusted=whole.entries[3:])
    assert [str(one) for one in made.gaps] == ["entries 1 to 3"]
    longer = made.follow(entry(made))
    assert parse(longer.text(), "x").head == 6
    broken = longer.text().replace(made.gaps[0].hash, "0" * 64, 1)
    assert problems(broken)[0].startswith("line 2: it does not follow the line before")


def test_of_two_stories_the_one_that_the_newest_entry_tells() -> None:
    whole = of_length(4)
    fork = Ledger(whole.entries[:2])
    other = entry(fork, VERSIONS[4], who="Joe")
    made, dropped = rebuilt([*whole.entries, other], trusted=[*whole.entries, other])
    assert (made.entries, dropped) == (whole.entries, [other])


def test_what_is_not_trusted_fills_gaps_and_begins_nothing() -> None:
    whole = of_length(4)
    forged = dataclasses.replace(whole.entries[1], who="Joe")
    made, _ = rebuilt([*whole.entries, forged], trusted=[whole.entries[0], whole.entries[3]])
    assert made.entries == whole.entries
    made, _ = rebuilt([whole.entries[3], forged], trusted=[whole.entries[3]])
    assert [type(one) for one in made.lines] == [Gap, Entry]


def test_what_can_be_salvaged(tmp_path: Path) -> None:
    whole = of_length(4)
    lines = whole.text().splitlines(keepends=True)
    path = tmp_path / "x"
    path.write_text(lines[0] + lines[1].replace("Jane", "Joe") + "\xff" + lines[2] + lines[3][:-3])
    assert salvaged(path) == [whole.entries[0]]


def test_the_old_file_is_kept(tmp_path: Path) -> None:
    book = LedgerFile(tmp_path / "releases.jsonl")
    book.path.write_text("mine\n")
    kept = book.replace(of_length(2))
    assert kept is not None
    assert (kept.read_text(), book.read().head) == ("mine\n", 2)
    assert book.replace(of_length(2)) is None


# --- the mirror -------------------------------------------------------------------------------------------------------


def test_a_mirror_is_read_and_taken_away_again() -> None:
    ledger = of_length(4)
    plain = "# golden\n\n<!-- goldsmith: {} -->"
    text = mirror.with_entries(plain, ledger.entries, "1.1.0")
    assert mirror.entries_of(text) == (list(ledger.entries), [])
    assert mirror.without(text) == plain
    # Twice is once.
    assert mirror.with_entries(text, ledger.entries, "1.1.0") == text
    assert text.count("-->") == 2


def test_what_is_kept_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    for number in range(30):
        action = Action.REVOKE if number == 3 else Action.PROMOTE
        ledger = ledger.follow(entry(ledger, VERSIONS[number % 5], action=action))
    text = mirror.with_entries("x", ledger.entries, "1.2.0")
    kept, _ = mirror.entries_of(text)
    assert len(text.encode()) <= mirror.LONGEST
    numbers = {one.number for one in kept}
    assert {30, 4} <= numbers
    assert {one.number for one in ledger.entries if one.version == "1.2.0"} <= numbers
    assert len(numbers) < 30


def test_what_was_edited_in_a_mirror_is_told() -> None:
    text = mirror.with_entries("x", of_length(3).entries, "")
    kept, told = mirror.entries_of(text.replace("Jane", "Joe", 1))
    assert ([one.number for one in kept], len(told)) == ([2, 3], 1)
    assert "entry 1" in told[0]
    unread = mirror.entries_of("<!-- goldsmith-ledger: [nonsense] -->")
    assert unread == ([], ["its mirror of the ledger cannot be read"])
    assert mirror.entries_of("<!-- goldsmith-ledger: [1] -->")[1][0].startswith("entry ?")


# --- what it adds up to -----------------------------------------------------------------------------------------------


def story(*steps: tuple[Action, str, Assignment, Assignment | None]) -> release_state.State:
    """Fold steps (action, channel, subject, before), each an intent and, unless before is None, what was done."""
    ledger = Ledger()
    for action, channel, subject, before in steps:
        facts: dict[str, Any] = {"action": action, "channel": channel, "before": str(before or "")}
        ledger = ledger.follow(entry(ledger, subject, phase=Phase.INTENT, **facts))
        if before is not None:
            ledger = ledger.follow(entry(ledger, subject, **facts))
    return release_state.fold(ledger.entries)


def test_channels_and_their_way_back() -> None:
    (one, two, three), nothing = VERSIONS[:3], Assignment("", "")
    state = story((Action.PROMOTE, "stable", one, nothing), (Action.PROMOTE, "stable", two, one))
    assert (state.current("stable"), state.back("stable"), state.current("edge")) == (two, one, nothing)
    state = story(
        (Action.PROMOTE, "stable", one, nothing), (Action.PROMOTE, "stable", two, one),
        (Action.PROMOTE, "stable", three, two), (Action.ROLLBACK, "stable", two, three),
    )  # fmt: skip
    assert (state.current("stable"), state.back("stable")) == (two, one)


def test_what_is_unfinished() -> None:
    one, two, nothing = VERSIONS[0], VERSIONS[1], Assignment("", "")
    state = story((Action.PROMOTE, "stable", one, nothing), (Action.PROMOTE, "stable", two, None))
    assert (state.current("stable"), state.goal("stable"), state.back("stable")) == (one, two, one)
    assert [begun.version for begun in state.open.values()] == [two.version]


def test_a_revocation_holds_from_its_intent_until_a_restoration_is_done() -> None:
    one, nothing = VERSIONS[0], Assignment("", "")
    assert story((Action.REVOKE, "", one, None)).revocation(one.digest) is not None
    assert story((Action.REVOKE, "", one, nothing), (Action.RESTORE, "", one, None)).revocation(one.digest) is not None
    assert story((Action.REVOKE, "", one, nothing), (Action.RESTORE, "", one, nothing)).revocation(one.digest) is None


def test_an_entry_that_is_missing_is_known_from_the_next() -> None:
    one, two = VERSIONS[:2]
    state = story((Action.PROMOTE, "stable", two, one))
    assert (state.current("stable"), state.back("stable")) == (two, one)
    assert assignment(str(one)) == one
