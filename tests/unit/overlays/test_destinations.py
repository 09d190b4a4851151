"""Destinations of an application: names are resolved again, addresses stay for an hour, local addresses stay closed."""

from __future__ import annotations

from collections.abc import Iterable

from tests.unit.golden_modules import golden_module

destinations = golden_module("golden.destinations")
NAMES = {"smtp.example.org": ["192.0.2.1", "2001:db8::1"], "api.example.com": ["192.0.2.2"], "192.0.2.9": ["192.0.2.9"]}


def lookup(host: str) -> Iterable[str]:
    if host not in NAMES:
        raise OSError(host)
    return NAMES[host]


def test_addresses_of_all_destinations() -> None:
    seen, failed = destinations.seen_now(
        ["smtp.example.org:587", "192.0.2.9:25", "gone.example.org:25"], {}, 100.0, lookup=lookup
    )
    assert seen == {"192.0.2.1 587": 100.0, "2001:db8::1 587": 100.0, "192.0.2.9 25": 100.0}
    assert failed == ["gone.example.org:25"]


def test_a_former_address_stays_for_an_hour() -> None:
    before = {"192.0.2.77 443": 1000.0, "192.0.2.78 443": 5000.0, "192.0.2.79 25": 5000.0}
    seen, _failed = destinations.seen_now(["api.example.com:443"], before, 5000.0 + 10, lookup=lookup)
    # The first is too old, and the port of the third is not declared any longer.
    assert set(seen) == {"192.0.2.2 443", "192.0.2.78 443"}


def test_a_name_that_cannot_be_looked_up_closes_nothing_at_once() -> None:
    seen, failed = destinations.seen_now(["gone.example.org:25"], {"192.0.2.5 25": 10.0}, 20.0, lookup=lookup)
    assert seen == {"192.0.2.5 25": 10.0}
    assert failed == ["gone.example.org:25"]


def test_a_name_opens_nothing_of_this_machine() -> None:
    inside = ["127.0.0.1", "::1", "169.254.1.1", "fe80::1%eth0", "224.0.0.1", "0.0.0.0"]
    seen, failed = destinations.seen_now(["x.example.org:25"], {}, 1.0, lookup=lambda _host: inside)
    assert (seen, failed) == ({}, [])


def test_rules_are_for_the_applications_user() -> None:
    text = destinations.rules({"192.0.2.1 587": 1.0, "2001:db8::1 587": 1.0, "192.0.2.2 25": 1.0})
    assert text == (
        "flush set inet golden application_out4\n"
        "add element inet golden application_out4 { gunicorn . 192.0.2.1 . 587, gunicorn . 192.0.2.2 . 25 }\n"
        "flush set inet golden application_out6\n"
        "add element inet golden application_out6 { gunicorn . 2001:db8::1 . 587 }\n"
    )
    assert destinations.rules({}).splitlines() == [f"flush set inet golden application_out{version}" for version in (4, 6)]
