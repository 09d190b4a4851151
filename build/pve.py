"""The Proxmox VE API, by proxmoxer: calls with clear errors, tasks waited for with their own log, uploads that stream.

TLS is verified, against the system's authorities or the CA of golden.yaml. Reading calls are repeated when the network
fails; changing ones never, because nobody knows whether they arrived. Nothing that is sent is logged.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import proxmoxer
import requests

from build.cluster import Settings, Token
from build.errors import GoldsmithError, HostError, StepFailed

Item = TypeVar("Item")
Result = TypeVar("Result")

API_SECONDS = 30
# Proxmox stores an upload a second time before it answers.
UPLOAD_SECONDS = 3600
TASK_SECONDS = 3600.0
READ_ATTEMPTS = 4
CONFIGURE_ATTEMPTS = 3
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 3.0
TASK_LOG_LINES = 12
# pve-access-control: RPCEnvironment::check, "Permission check failed (/path, Privilege)".
DENIED = re.compile(r"Permission check failed \((?P<path>[^,)]+), (?P<privileges>[^)]+)\)")
# A pool that is not there is told with the same status.
NO_POOL = re.compile(r"pool '[^']*' does not exist")
POOLS = "golden.yaml names our pools: proxmox.pool, proxmox.clones; python -m build doctor --roles prints how to make them"
# A worker that logged warnings has done its work (PVE::Tools::upid_status_is_error).
GOOD_END = re.compile(r"OK|WARNINGS: \d+")

# Both log what is sent, tokens and cloud-init data among it.
for _name in ("proxmoxer", "urllib3"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class ApiError(StepFailed):
    """The API refused; ``status`` is its HTTP status, 0 when nobody answered."""

    def __init__(self, brief: str, *, status: int, details: str = "", hint: str = "") -> None:
        super().__init__(brief, details=details, hint=hint)
        self.status = status


class Denied(ApiError):
    """The token lacks a privilege, which the text names."""


class TaskFailed(StepFailed):
    """A task of Proxmox ended with an error, or not in time."""


class Api:
    """A connection for one thread. ``calls`` counts what was asked, by method; ``before`` is called ahead of each call."""

    def __init__(self, settings: Settings, token: Token) -> None:
        self.settings, self.token = settings, token
        self.calls: Counter[str] = Counter()
        self.before: Callable[[], None] = lambda: None
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
        """Return a connection of its own for another thread, which counts its calls here."""
        fresh = Api(self.settings, self.token)
        fresh.calls = self.calls
        return fresh

    def close(self) -> None:
        """Let the connections go."""
        for api in (self._short, self._long):
            api._store["session"].close()  # noqa: SLF001 (proxmoxer offers no other way)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """Read; a connection that fails is tried again a few times. Raises ApiError."""
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
        """Change something. Raises ApiError."""
        return self._call("put", path, parameters)

    def configure(self, path: str, **keys: Any) -> None:
        """Set keys of a machine's configuration. When the answer is lost, look whether they are set before trying again."""
        for attempt in range(1, CONFIGURE_ATTEMPTS + 1):
            try:
                self.put(f"{path}/config", **keys)
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
        # The API's names carry hyphens, Python's cannot.
        named = {key.replace("_", "-"): value for key, value in parameters.items()}
        with _translated(self.settings, method, path):
            return getattr((api or self._short)(path.strip("/")), method)(**named)

    def upload(
        self, node: str, storage: str, source: Path, *, name: str, sha256: str, content: str = "import",
        progress: Callable[[int], None] = lambda _sent: None,
    ) -> str:  # fmt: skip
        """Stream a file to a storage under ``name`` and wait until Proxmox has checked its hash; return the volume id.

        ``progress`` is told how many bytes are sent. Memory does not grow with the file.
        """
        with _Sent(source, name, progress) as stream:
            parameters = {"content": content, "filename": stream, "checksum": sha256, "checksum-algorithm": "sha256"}
            upid = self._call("post", f"/nodes/{node}/storage/{storage}/upload", parameters, api=self._long)
        self.wait(upid)
        return f"{storage}:{content}/{name}"

    def wait(self, upid: str, *, timeout: float = TASK_SECONDS, tell: Callable[[str], None] = lambda _line: None) -> None:
        """Wait for a task; ``tell`` gets its newest log line. Raises TaskFailed with the end of its log."""
        node, kind = upid.split(":")[1], upid.split(":")[5]
        deadline, pause = time.monotonic() + timeout, FIRST_WAIT_SECONDS
        while True:
            status = self.get(f"/nodes/{node}/tasks/{upid}/status")
            if status["status"] == "stopped":
                break
            if time.monotonic() > deadline:
                raise TaskFailed(
                    f"the task {kind} on {node} is not done after {timeout:.0f} s", details=upid,
                    hint="look at it in Proxmox's task list; run the same command again to continue",
                )  # fmt: skip
            if lines := self._log(node, upid):
                tell(lines[-1])
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_WAIT_SECONDS)
        if not GOOD_END.fullmatch(status.get("exitstatus", "")):
            raise TaskFailed(
                f"the task {kind} on {node} failed: {status.get('exitstatus', 'no exit status')}",
                details="\n".join(self._log(node, upid)), hint=_hint(status.get("exitstatus", "")),
            )  # fmt: skip

    def _log(self, node: str, upid: str) -> list[str]:
        lines = self.get(f"/nodes/{node}/tasks/{upid}/log", limit=0)
        return [str(line.get("t", "")) for line in lines][-TASK_LOG_LINES:]

    def version(self) -> tuple[int, int]:
        """Return the version of Proxmox VE: major and minor."""
        major, minor, *_ = (*str(self.get("/version")["version"]).split("-")[0].split("."), "0")
        return int(major), int(minor)

    def major(self) -> int:
        """Return the major version of Proxmox VE."""
        return self.version()[0]


def each(api: Api, work: Callable[[Api, Item], Result], items: Sequence[Item], *, most: int) -> list[Result]:
    """Do the work for every item, with ``most`` connections at a time at most; return the results in order."""
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
    """A file that tells how much of it was read, under the name that the upload shall have."""

    def __init__(self, path: Path, name: str, progress: Callable[[int], None]) -> None:
        super().__init__(path, "rb")
        self._shown, self._progress = name, progress

    @property
    def name(self) -> str:
        return self._shown

    @name.setter
    def name(self, _path: object) -> None:
        """Ignore what FileIO writes there."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._progress(self.tell())
        return data


@contextmanager
def _translated(settings: Settings, method: str, path: str) -> Iterator[None]:
    """Turn what proxmoxer and requests raise into errors that say what to do."""
    where = f"{method.upper()} {path}"
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise ApiError(
            f"the certificate of {settings.host} is not trusted", status=0, details=_root(error),
            hint="name the cluster's CA in golden.yaml: proxmox.ca (on a node: /etc/pve/pve-root-ca.pem)",
        ) from error  # fmt: skip
    except requests.exceptions.RequestException as error:
        raise ApiError(
            f"{settings.host}:{settings.port} does not answer ({where})", status=0, details=_root(error),
            hint="is the node up, and golden.yaml's proxmox.host right?",
        ) from error  # fmt: skip
    except proxmoxer.ResourceException as error:
        raise _refused(error, where) from error


def _refused(error: Any, where: str) -> GoldsmithError:
    text = " ".join(str(error.content or error.status_message).split())
    if error.errors:
        text = f"{text} {error.errors}".strip()
    status = int(error.status_code)
    if status == 401:
        return ApiError(
            f"Proxmox does not accept the token ({where})", status=status, details=text,
            hint="is it complete, and neither expired nor deleted?",
        )  # fmt: skip
    if status == 403:
        found = DENIED.search(text)
        what = f"{found['privileges']} on {found['path']}" if found else text
        if NO_POOL.search(text):
            return Denied(f"Proxmox has no such pool: {text} ({where})", status=status, details=text, hint=POOLS)
        return Denied(
            f"the token lacks a privilege: {what} ({where})", status=status, details=text,
            hint="python -m build doctor --proxmox shows what is missing, and the commands that grant it",
        )  # fmt: skip
    # 595 and its neighbours: the node that we talk to could not reach the one that we mean.
    if 595 <= status <= 599:
        return ApiError(f"the node does not answer ({where})", status=status, details=text, hint="is it online?")
    return ApiError(f"Proxmox refused: {text} ({where})", status=status, hint=_hint(text))


def _hint(text: str) -> str:
    """Return what to do about Proxmox's own words."""
    for words, hint in (
        ("locked", "another task holds the machine's lock: wait for it, then run the same command again"),
        ("can't lock", "another task holds the machine's lock: wait for it, then run the same command again"),
        ("no quorum", "the cluster has lost its quorum: nothing can be changed until it is back"),
        ("No space left", "free space on the storage"),
        ("not enough", "free space on the storage"),
        ("Linked clone feature is not supported", "this storage makes full clones only: leave --linked out"),
        ("checksum mismatch", "the upload was damaged on its way: run the same command again"),
    ):
        if words in text:
            return hint
    return ""


def _root(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {error}"
