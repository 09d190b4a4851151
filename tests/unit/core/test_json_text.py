"""Every invalid JSON text raises the same kind of error."""

from __future__ import annotations

import json

import pytest

from build.core import json_text


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 5000, '{"a": ' * 50_000, b"[" * 100_000])
def test_bad_text_is_one_error(text: str | bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        json_text.parse(text)


def test_good_text() -> None:
    assert json_text.parse('{"a": [1, null]}') == {"a": [1, None]}
    assert json_text.parse(b"\xff\xfe[\x00]\x00") == []
