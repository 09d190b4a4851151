"""Static files as the web server delivers them, compared with the output of collectstatic."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.golden_modules import golden_module

golden = golden_module("golden.core")
health = golden_module("golden.health")
static = golden_module("golden.static_files")


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    for name in ("a.css", "a.0123456789ab.css", "b.css", "c.css", "img/Screenshot 1.png"):
        path = tmp_path / "collected" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "collected"


def names(collected: Path) -> list[str]:
    return sorted(str(path.relative_to(collected)) for path in collected.rglob("*") if path.is_file())


def test_a_few_of_each_kind_are_asked_for(collected: Path) -> None:
    assert list(static.sample(names(collected))) == ["a.0123456789ab.css", "a.css", "b.css", "img/Screenshot 1.png"]
    many = [f"{number}.{number:x}" for number in range(5000)]
    assert len(list(static.sample(many))) == static.MOST // static.MOST_OF_A_KIND


def test_what_is_served_is_compared(collected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(path: str, *, limit: int) -> tuple[int, bytes]:
        asked.append(path)
        return 200, (collected / path.removeprefix("/static/").replace("%20", " ")).read_bytes()

    monkeypatch.setattr(health, "fetch", fetch)
    static.check(collected, collected, names(collected))
    assert "/static/img/Screenshot%201.png" in asked


def test_each_file_that_is_not_served_is_named(collected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/static/a.css": (404, b""), "/static/b.css": (200, b"other")}

    def fetch(path: str, *, limit: int) -> tuple[int, bytes]:
        if "Screenshot" in path:
            raise ConnectionResetError("gone")
        return answers.get(path, (200, path.removeprefix("/static/").encode()))

    monkeypatch.setattr(health, "fetch", fetch)
    with pytest.raises(golden.Problem) as caught:
        static.check(collected, collected, names(collected))
    assert caught.value.code == golden.CHECK_FAILED
    assert "3 of 4 static files" in caught.value.brief
    for part in ("a.css: 404", "b.css: 5 bytes of another content", "img/Screenshot 1.png: ConnectionResetError"):
        assert part in caught.value.brief
