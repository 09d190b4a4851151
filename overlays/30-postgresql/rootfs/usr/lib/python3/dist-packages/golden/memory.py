"""PostgreSQL's share of a machine: its settings as a function of memory and of the application's workers, nothing else.

The rules are those of PostgreSQL's manual ("Resource Consumption", "Planner Cost Constants"), applied to one half of
the machine: the other half is the application's, the web server's and the system's.

- ``shared_buffers``: a quarter of its memory, the manual's value for a dedicated server.
- ``effective_cache_size``: what the planner may expect to find in memory, the kernel's cache with it: all of its half.
- ``work_mem``: each connection may use it twice over at the same time (``hash_mem_multiplier``): half of its memory,
  shared by the connections.
- ``maintenance_work_mem``: the server and three autovacuum workers may use it at the same time: an eighth of its memory.
- ``max_connections``: each worker keeps one; a graceful reload has the old and the new workers side by side.
"""

from __future__ import annotations

MIB = 1024 * 1024
# Connections beside the workers': for migrations, backup, and people.
OTHERS = 16
FEWEST_CONNECTIONS = 40


def settings(*, memory: int, workers: int) -> dict[str, str]:
    """Return the settings for a machine with ``memory`` bytes and an application with ``workers`` workers."""
    share = memory // MIB // 2
    connections = max(FEWEST_CONNECTIONS, 2 * workers + OTHERS)
    return {
        "max_connections": str(connections),
        "shared_buffers": f"{_between(share // 4, 32, 16384)}MB",
        "effective_cache_size": f"{_between(share, 64, 1 << 20)}MB",
        "work_mem": f"{_between(share // 2 // connections // 2, 1, 64)}MB",
        "maintenance_work_mem": f"{_between(share // 8 // 4, 16, 1024)}MB",
    }


def render(found: dict[str, str], *, memory: int, workers: int) -> str:
    """Return the text of the file that postgresql.conf includes."""
    head = f"# Written at boot by golden-postgresql-memory: {memory // MIB} MiB of memory, {workers} workers.\n"
    return head + "".join(f"{name} = {value}\n" for name, value in found.items())


def _between(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))
