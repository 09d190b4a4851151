"""The Proxmox VE API through proxmoxer: calls with clear errors, waiting for tasks with their log, streaming uploads.

TLS is verified with the system's CAs or the CA of golden.yaml. Reads are retried after network errors; writes are never
retried, because it is unknown whether they were applied. Requests are not logged.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import proxmoxer

from build.core import log
from build.core.errors import HostError
from build.proxmox.api_errors import ApiError, Denied, TaskFailed, explained, is_locked, translated
from build.spec.cluster import Settings, Token

__all__ = ["Api", "ApiError", "Denied", "TaskFailed", "each"]

Item = TypeVar("Item")
Result = TypeVar("Result")

API_SECONDS = 30
# Proxmox stores an upload a second time before it answers.
UPLOAD_SECONDS = 3600
TASK_SECONDS = 3600.0
READ_ATTEMPTS = 4
CONFIGURE_ATTEMPTS = 3
# How long a change waits for a locked VM: a clone of it copies whole disks. Proxmox itself waits ten seconds in each call.
LOCK_SECONDS, LOCK_POLL_SECONDS = 1800.0, 1.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 3.0
TASK_LOG_LINES = 12
# A task with warnings has succeeded (PVE::Tools::upid_status_is_error).
GOOD_END = re.compile(r"OK|WARNINGS: \d+")

# Both log requests, including tokens and cloud-init data.
for _name in ("proxmoxer", "urllib3"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Api:
    """A connection for one thread. ``calls`` counts the requests by method; ``before`` is called before each request.

    ``lock_seconds``: how long a change waits while a task has locked the VM.
    """

    def __init__(self, settings: Settings, token: Token) -> None:
        self.settings, self.token = settings, token
        self.calls: Counter[str] = Counter()
        self.before: Callable[[], None] = lambda: None
        self.lock_seconds = LOCK_SECONDS
        self._short, self._long = self._connect(API_SECONDS), self._connect(UPLOAD_SECONDS)

    def _connect(self, timeout: int) -> Any:
        if self.settings.ca and not self.settings.ca.is_file():
            raise HostError(
                f"golden.yaml: proxmox.ca: {self.settings.ca} does not exist", hint="write the path of a PEM file"
            )
        return proxmoxer.ProxmoxAPI(
            self.settings.host, port=self.settings.port, user=self.token.user, token_name=self.token.name,
            token_value=self.token.secret, verify_ssl=str(self.settings.ca) if self.settings.ca else True, timeout=timeout,
        )  # fmt: skip

    def another(self) -> Api:
        """Return a separate connection for another thread; its calls are counted here too."""
        fresh = Api(self.settings, self.token)
        fresh.calls = self.calls
        return fresh

    def close(self) -> None:
        """Close the connections."""
        for api in (self._short, self._long):
            api._store["session"].close()  # noqa: SLF001 (proxmoxer offers no other way)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """Read; a failed connection is retried a few times. Raises ApiError."""
        wait = FIRST_WAIT_SECONDS
        for attempt in range(READ_ATTEMPTS):
            try:
                return self._call("get", path, parameters)
            except ApiError as error:
                if error.status != 0 or attempt == READ_ATTEMPTS - 1:
                    raise
                time.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)
        raise AssertionError

    def post(self, path: str, **parameters: Any) -> Any:
        """Create or start something. Raises ApiError."""
        return self._call("post", path, parameters)

    def put(self, path: str, **parameters: Any) -> Any:
        """Change something; if a task has locked the VM, wait for it. Raises ApiError."""
        deadline, waiting = time.monotonic() + self.lock_seconds, False
        while True:
            try:
                return self._call("put", path, parameters)
            except ApiError as error:
                # Nothing was changed, so that a retry is safe.
                if not is_locked(error) or time.monotonic() >= deadline:
                    raise
            if not waiting:
                log.info(f"{path} is locked, for example by a clone of it; waiting up to {self.lock_seconds / 60:.0f} min")
                waiting = True
            time.sleep(LOCK_POLL_SECONDS)

    def configure(self, path: str, *, digest: str = "", **keys: Any) -> None:
        """Set keys of a VM's configuration. If the response is lost, check whether they are set before a retry.

        ``digest``: that of the configuration which must not have changed.
        """
        unchanged = {"digest": digest} if digest else {}
        for attempt in range(1, CONFIGURE_ATTEMPTS + 1):
            try:
                self.put(f"{path}/config", **unchanged, **keys)
            except ApiError as error:
                if error.status != 0 or attempt == CONFIGURE_ATTEMPTS:
                    raise
                config = self.get(f"{path}/config")
                if all(str(config.get(key, "")).strip() == str(value).strip() for key, value in keys.items()):
                    return
            else:
                return

    def delete(self, path: str, **parameters: Any) -> Any:
        """Remove something. Raises ApiError."""
        return self._call("delete", path, parameters)

    def _call(self, method: str, path: str, parameters: Mapping[str, Any], *, api: Any = None) -> Any:
        self.before()
        self.calls[method] += 1
        # The API's names contain hyphens, Python's cannot.
        named = {key.replace("_", "-"): value for key, value in parameters.items()}
        with translated(self.settings, self.token, method, path):
            return getattr((api or self._short)(path.strip("/")), method)(**named)

    def upload(
        self, node: str, storage: str, source: Path, *, name: str, sha256: str, content: str = "import",
        progress: Callable[[int], None] = lambda _sent: None,
    ) -> str:  # fmt: skip
        """Stream a file to a storage under ``name`` and wait until Proxmox has checked its hash; return the volume id.

        ``progress`` is called with the number of bytes sent. Memory does not grow with the file.
        """
        with _Sent(source, name, progress) as stream:
            # The order matters: pve-http-server expects these parts in this order, and closes the connection otherwise.
            parameters = {"content": content, "checksum-algorithm": "sha256", "checksum": sha256, "filename": stream}
            upid = self._call("post", f"/nodes/{node}/storage/{storage}/upload", parameters, api=self._long)
        self.wait(upid)
        return f"{storage}:{content}/{name}"

    def wait(self, upid: str, *, timeout: float = TASK_SECONDS, tell: Callable[[str], None] = lambda _line: None) -> None:
        """Wait for a task; ``tell`` is called with its newest log line. Raises TaskFailed with the end of its log."""
        node, kind = upid.split(":")[1], upid.split(":")[5]
        deadline, pause = time.monotonic() + timeout, FIRST_WAIT_SECONDS
        while True:
            status = self.get(f"/nodes/{node}/tasks/{upid}/status")
            if status["status"] == "stopped":
                break
            if time.monotonic() > deadline:
                raise TaskFailed(
                    f"the task {kind} on {node} is not done after {timeout:.0f} s", details=upid,
                    hint="check it in Proxmox's task list; run the same command again to continue",
                )  # fmt: skip
            if lines := self._log(node, upid):
                tell(lines[-1])
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_WAIT_SECONDS)
        if not GOOD_END.fullmatch(status.get("exitstatus", "")):
            text, hint = explained(str(status.get("exitstatus", "no exit status")))
            raise TaskFailed(
                f"the task {kind} on {node} failed: {text}", details="\n".join(self._log(node, upid)), hint=hint
            )

    def _log(self, node: str, upid: str) -> list[str]:
        lines = self.get(f"/nodes/{node}/tasks/{upid}/log", limit=0)
        return [str(line.get("t", "")) for line in lines][-TASK_LOG_LINES:]

    def first_line(self, upid: str) -> str:
        """Return the first line of a task's log; retry for a moment if the task has just started."""
        for _ in range(READ_ATTEMPTS):
            if lines := self.get(f"/nodes/{upid.split(':')[1]}/tasks/{upid}/log", limit=1):
                return str(lines[0].get("t", ""))
            time.sleep(FIRST_WAIT_SECONDS)
        return ""

    def version(self) -> tuple[int, int]:
        """Return the version of Proxmox VE: major and minor."""
        major, minor, *_ = (*str(self.get("/version")["version"]).split("-")[0].split("."), "0")
        return int(major), int(minor)

    def major(self) -> int:
        """Return the major version of Proxmox VE."""
        return self.version()[0]


def each(api: Api, work: Callable[[Api, Item], Result], items: Sequence[Item], *, most: int) -> list[Result]:
    """Call ``work`` for every item, with at most ``most`` connections at a time; return the results in order."""
    local = threading.local()
    opened: list[Api] = []

    def one(item: Item) -> Result:
        if not hasattr(local, "api"):
            local.api = api.another()
            opened.append(local.api)
        return work(local.api, item)

    try:
        with ThreadPoolExecutor(max(1, min(len(items), most))) as pool:
            return list(pool.map(one, items))
    finally:
        for connection in opened:
            connection.close()


class _Sent(io.FileIO):
    """A file that reports how much of it was read; its ``name`` is that of the upload."""

    def __init__(self, path: Path, name: str, progress: Callable[[int], None]) -> None:
        super().__init__(path, "rb")
        self._shown, self._progress = name, progress

    @property
    def name(self) -> str:
        return self._shown

    @name.setter
    def name(self, _path: object) -> None:
        """Ignore the name set by FileIO."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._progress(self.tell())
        return data
