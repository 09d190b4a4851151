"""The cost of hardening: the load generator's output is complete, errors do not count, ratios are per round."""

from __future__ import annotations

import jinja2
import pytest

from build.bench import bench, hardening
from build.bench.hardening import Load
from build.core.errors import StepFailed

WRK = """Running 5s test @ https://golden.example.internal/health
  2 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    12.05ms    4.31ms  60.11ms   81.25%
    Req/Sec   665.45    120.11     0.94k    70.00%
  Latency Distribution
     50%   11.20ms
     75%   13.90ms
     90%   17.10ms
     99%   27.50ms
  6650 requests in 5.02s, 5.10MB read
Requests/sec:   1324.70
Transfer/sec:      1.02MB
"""


def test_a_report_is_read() -> None:
    assert hardening.read_load(WRK) == Load(1324.7, 27.5)
    assert hardening.read_load(WRK.replace("27.50ms", "950.00us")).p99 == 0.95
    assert hardening.read_load(WRK.replace("27.50ms", "1.20s ")).p99 == 1200


@pytest.mark.parametrize(
    "text",
    [
        "",
        WRK.replace("Transfer/sec", "  Non-2xx or 3xx responses: 12\nTransfer/sec"),
        WRK.replace("Transfer/sec", "  Socket errors: connect 0, read 3, write 0, timeout 0\nTransfer/sec"),
        WRK.replace("     99%", "     98%"),
    ],
)
def test_errors_are_no_throughput(text: str) -> None:
    with pytest.raises(StepFailed):
        hardening.read_load(text)


def test_ratios_are_those_of_the_rounds() -> None:
    loads = {"hardened": [Load(95, 10), Load(45, 20), Load(99, 30)], "stock": [Load(100, 11), Load(50, 21), Load(100, 31)]}
    found = hardening.summary(loads)
    assert found == {"hardened": {"rate": 95, "p99": 20}, "stock": {"rate": 100, "p99": 21}, "ratio": 0.95}
    assert hardening.broken_promises({"page": found}) == []
    assert hardening.broken_promises({"page": {**found, "ratio": 0.89}}) == ["page: 89% of stock"]


def test_the_page_has_a_row_for_each_page() -> None:
    one = {"hardened": {"rate": 95, "p99": 20}, "stock": {"rate": 100, "p99": 21}, "ratio": 0.95}
    results = {"hardening": {"place": "container", "pages": {"/health": one}, "connections": 16, "rounds": 5}}
    page = jinja2.Environment(autoescape=False).from_string(hardening.SECTION).render(results=results)
    assert "| /health | 95 | 100 | 95 % | 20 ms | 21 ms |" in page
    assert "in a container" in page


def test_hardening_is_a_part_of_the_bench() -> None:
    assert "hardening" in bench.PARTS
