"""A project with packages of compiled code, in the sandbox of the application server."""

from __future__ import annotations

import json

from .conftest import Browser


def test_compiled_packages(page: Browser) -> None:
    """numpy, lxml, Pillow, argon2 and callbacks of ctypes work where no memory is writable and executable"""
    answer = page.get("/compiled")
    assert answer.status == 200, answer
    assert json.loads(answer.body) == {"numpy": 1.0, "lxml": 1.0, "pillow": "WEBP", "argon2": "argon2", "callback": 2}
