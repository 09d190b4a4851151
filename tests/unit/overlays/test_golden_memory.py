from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module

MIB = 1024 * 1024
SIZES = (256, 512, 1024, 2048, 4096, 16384, 65536, 1 << 20)


@pytest.fixture(scope="module")
def memory() -> Any:
    return golden_module("golden.memory")


@pytest.fixture(scope="module")
def settings(memory: Any) -> Callable[..., dict[str, int]]:
    """Return the settings as numbers, in MiB where they are sizes."""

    def ask(mebibytes: int, workers: int = 2) -> dict[str, int]:
        found = memory.settings(memory=mebibytes * MIB, workers=workers)
        return {name: int(value.removesuffix("MB")) for name, value in found.items()}

    return ask


@pytest.mark.parametrize(
    ("mebibytes", "workers", "wanted"),
    [
        (2048, 2, (40, 256, 1024, 6, 32)), (4096, 2, (40, 512, 2048, 12, 64)), (4096, 16, (48, 512, 2048, 10, 64)),
        (16384, 8, (40, 2048, 8192, 51, 256)), (65536, 64, (144, 8192, 32768, 56, 1024)), (256, 1, (40, 32, 128, 1, 16)),
    ],
)  # fmt: skip
def test_settings(settings: Callable[..., dict[str, int]], mebibytes: int, workers: int, wanted: tuple[int, ...]) -> None:
    names = ("max_connections", "shared_buffers", "effective_cache_size", "work_mem", "maintenance_work_mem")
    assert settings(mebibytes, workers) == dict(zip(names, wanted, strict=True))


@pytest.mark.parametrize("mebibytes", SIZES[1:])
@pytest.mark.parametrize("workers", [1, 2, 16, 64])
def test_all_of_it_at_once_fits_into_the_machine(
    settings: Callable[..., dict[str, int]], mebibytes: int, workers: int
) -> None:
    found = settings(mebibytes, workers)
    sorting = found["max_connections"] * found["work_mem"] * 2
    assert found["shared_buffers"] + sorting + 4 * found["maintenance_work_mem"] <= mebibytes


@pytest.mark.parametrize("workers", [1, 12, 13, 100])
def test_every_worker_has_its_connection_through_a_reload(settings: Callable[..., dict[str, int]], workers: int) -> None:
    reserved = 3 + 5  # superuser_reserved_connections and reserved_connections of postgresql.conf
    assert settings(2048, workers)["max_connections"] - reserved >= 2 * workers + 5


def test_more_memory_never_gives_less(settings: Callable[..., dict[str, int]]) -> None:
    found = [settings(size) for size in SIZES]
    for smaller, larger in itertools.pairwise(found):
        assert all(larger[name] >= smaller[name] for name in smaller)


def test_text_is_what_postgresql_reads(memory: Any) -> None:
    text = memory.render({"work_mem": "4MB"}, memory=2048 * MIB, workers=3)
    assert text.splitlines()[1:] == ["work_mem = 4MB"]
    assert text.startswith("# ")
    assert "2048 MiB of memory, 3 workers" in text
