"""The order of the tests: --shuffle, the slow ones first in each worker's share, and parts for several machines."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import SHARED, of_other_parts, part_of, pytest_xdist_auto_num_workers, shares, shuffled

TESTS: list[Any] = [SimpleNamespace(path=Path(f"test_{number % 3}.py"), name=f"test {number}") for number in range(30)]


@pytest.mark.parametrize(("processors", "workers"), [(1, 2), (2, 4), (8, 16), (64, 16)])
def test_there_are_two_workers_for_each_processor(processors: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(processors)))
    assert pytest_xdist_auto_num_workers() == workers


def test_shuffling_keeps_each_test_and_the_tests_of_a_file_together() -> None:
    order = shuffled(TESTS, 7)
    assert order != TESTS
    assert sorted(item.name for item in order) == sorted(item.name for item in TESTS)
    changes = [one for one, other in itertools.pairwise(order) if one.path != other.path]
    assert len(changes) == 2
    assert shuffled(TESTS, 7) == order
    assert shuffled(TESTS, 8) != order


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("slow", [0, 1, 3, 5, 40])
def test_each_share_begins_with_its_slow_tests(workers: int, slow: int) -> None:
    quick = [f"quick {number}" for number in range(100)]
    long = [f"slow {number}" for number in range(slow)]
    order = shares(long, quick, workers)
    assert sorted(order) == sorted([*long, *quick])
    assert [test for test in order if test in quick] == quick
    begin = 0
    for left in range(workers, 0, -1):
        # As pytest-xdist's worksteal cuts them.
        size = (len(order) - begin) // left
        share = order[begin : begin + size]
        kinds = [test.startswith("slow") for test in share]
        assert kinds == sorted(kinds, reverse=True)
        assert abs(sum(kinds) - slow / workers) < 1 or size < slow / workers
        begin += size


def test_the_parts_have_each_shared_test_once_and_everything_else() -> None:
    tests = Path(__file__).parents[2]
    paths = [*(tests / name / "test_x.py" for name in SHARED), tests / "contract/packer/test_x.py", tests / "unit/x.py"]
    items: list[Any] = [
        SimpleNamespace(path=path, nodeid=f"{path.relative_to(tests)}::test_{number}")
        for path in paths
        for number in range(40)
    ]
    left = [[item.nodeid for item in of_other_parts(items, part, 3)] for part in (1, 2, 3)]
    taken = [[item.nodeid for item in items if item.nodeid not in names] for names in left]
    shared = {item.nodeid for item in items if str(item.path.parent.relative_to(tests)) in SHARED}
    assert sorted(name for names in taken for name in names if name in shared) == sorted(shared)
    assert all({item.nodeid for item in items} - shared <= set(names) for names in taken)
    # None is much larger than another one.
    assert all(len(shared) / 5 < len(set(names) & shared) < len(shared) / 2 for names in taken)


def test_the_directories_of_the_parts_exist() -> None:
    assert all((Path(__file__).parents[2] / name).is_dir() for name in SHARED)


def test_a_part_is_a_number_of_several() -> None:
    assert part_of("2/3") == (2, 3)
    for share in ("", "1", "0/2", "3/2", "1/2/3", "a/b", "-1/2"):
        with pytest.raises(pytest.UsageError, match="is not a part: write 1/2"):
            part_of(share)
