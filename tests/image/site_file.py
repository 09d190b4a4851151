"""Adds a key to the site settings of a machine, applies them, and restores what was there before."""

from __future__ import annotations

SITE = "/etc/golden/site.yaml"
KEPT = "/root/golden-test-site.yaml"
# Shell commands: keep a copy of the settings (an empty one if there are none), unless there is one; put it back, and apply.
KEEP = f"test -e {KEPT} || {{ test -e {SITE} && cp -p {SITE} {KEPT} || : >{KEPT}; }}"
BACK = f"if [ -s {KEPT} ]; then cp -p {KEPT} {SITE}; else rm -f {SITE}; fi; rm {KEPT}; golden-site apply --json"


def applied(line: str) -> str:
    """Return the shell command that applies the settings of the copy with one key replaced by ``line``.

    The line has no apostrophe.
    """
    key = line.partition(":")[0]
    return f"umask 077; {{ grep -v ^{key}: {KEPT}; echo '{line}'; }} >{SITE}; golden-site apply --json"
