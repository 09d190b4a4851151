"""A Proxmox VE for tests: fakepve, and what publishing an image needs of the real one beyond it.

It is not Proxmox: nothing boots here. Functions that fakepve lacks or does differently are added, each with its reason:

* content type ``import``: uploads are streamed to a file, because an image does not fit into memory; extension, name,
  checksum and backing file are checked as Proxmox does (pve-storage, Status.pm and Plugin.pm);
* a token may do what both it and its user may; a guest that is gone, or not yet in its pool, is 403 to a token whose rights
  come from a pool; the pool of a guest is shown to who has Pool.Audit (measured on Proxmox VE 9.2);
* names, template flags and states in ``/cluster/resources`` are those of the last broadcast, up to ten seconds old;
* the parts of an upload are read in one order only, and whoever is refused while he still sends sees the connection
  close (pve-http-server 5.2.2 and the one of Proxmox VE 9.2, measured);
* media belong to a node unless their storage is shared: fakepve has one list for all nodes;
* ``import-from`` when a VM is made (qemu-server, Qemu.pm: size 0, from content ``import`` or ``images``);
* cloud-init drives are called vm-ID-cloudinit, and a clone gets a separate one (Qemu.pm, clone_vm);
* a disk that a change of the configuration asks for is made (Qemu.pm, update_vm_api): fakepve keeps the words;
* tags given at creation are checked on /vms/ID alone, by the task; a clone inherits protection (both Qemu.pm);
* tags are lower case, sorted and without doubles; a new drive is appended to the boot order; a drive of a protected VM
  cannot be deleted (measured on Proxmox VE 9.2);
* while a VM is cloned its configuration is locked: a change waits ten seconds, and fails (measured on Proxmox VE 9.2);
* privileges of cloud-init keys and options as Qemu.pm has them: VM.Config.Cloudinit, or VM.Config.Network; VM.Monitor before
  version 9;
* a shutdown of a machine that is off does nothing (qemu-server, API2/Qemu.pm, vm_shutdown);
* a disk can be moved to another VM of the node (qemu-server, Qemu.pm, move_disk with target-vmid): both VMs without a lock
  and no templates, the source stopped or the disk detached, no snapshot with the disk, the key at the target free, both
  digests those of the configurations, VM.Config.Disk on both and Datastore.AllocateSpace; the volume gets a name of the
  target, and the drive keeps its options; the task has an id with both VMs, and while it runs no configuration is marked as
  locked, and at the end of it the disk is in none;
* who clones needs VM.Clone on the source (qemu-server, Qemu.pm, clone_vm); the task of a clone fails when its number was
  taken meanwhile, and the list of a node is refused while one of its VMs is removed (measured on Proxmox VE 9.2);
* a disk that is resized has its new size; a running task is listed as RUNNING (pve-manager, Tasks.pm);
* the bridges of a node, of those the caller may see; ``/cluster/nextid`` answers what is free.

The lab puts machines behind it by overriding the hooks ``created``, ``configured``, ``cloned``, ``started``, ``stopped``,
``made_template``, ``resized``, ``moved``, ``destroyed`` and ``freed``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from fakepve import FakePve
from fakepve.lxc import format_size
from fakepve.model import PveError, TaskError, lock_timeout
from fakepve.qemu import DRIVE_KEY, drives_of, is_cdrom, join_drive, split_drive, volume_ref
from fakepve.routing import die, param_error, split_list
from fakepve.server import USER, ok
from fakepve.storage import _bytes as size_bytes

CHUNK = 1 << 20
# pve-storage, PVE::Storage: SAFE_CHAR_CLASS_RE and the extensions of content import since 8.3.6 (PVE 8.4).
IMPORT_NAME = re.compile(r"[a-zA-Z0-9\-.+=_]+\.(ova|qcow2|raw|vmdk)")
IMPORT_SINCE = (8, 4)
AGENT_SPLIT_SINCE = 9
QCOW2_MAGIC = b"QFI\xfb"
CLOUD_INIT_BYTES = 4 << 20
# Drives that nothing boots from.
FIRMWARE_DRIVES = frozenset({"efidisk0", "tpmstate0"})
BROADCAST_SECONDS = 10.0
LOCK_POLL_SECONDS = 0.01
# pve-http-server reads the parts of an upload in this order; all but the first and the last may be missing.
UPLOAD_PARTS = ("content", "checksum-algorithm", "checksum", "filename")
# qemu-server, PVE/API2/Qemu.pm: which privilege a key of a VM's configuration needs, where fakepve answers otherwise.
OPTION_KEYS = frozenset({"bios", "ostype", "template", "acpi", "kvm", "hotplug", "localtime", "tablet", "freeze"})
CONFIG_PRIVILEGES = frozenset(
    f"VM.Config.{what}" for what in ("Disk", "CDROM", "CPU", "Memory", "Network", "HWType", "Options", "Cloudinit")
)
CLOUD_INIT_KEYS = frozenset({"ciuser", "cipassword", "citype", "ciupgrade", "sshkeys", "nameserver", "searchdomain"})


@dataclass(frozen=True)
class Medium:
    """An uploaded image: where its bytes are, their SHA-256, and how large a disk it is."""

    path: Path
    sha256: str
    size: int
    virtual_size: int
    problem: str = ""


class WrongPart(PveError):  # type: ignore[misc]
    """A part of an upload that is not expected where it comes."""


class Closing(web.Response):
    """A refusal after which the connection is closed, also while the client still sends."""


def virtual_size(path: Path) -> tuple[int, str]:
    """Return the size of the disk in an image file, and what Proxmox would not like about it."""
    if path.suffix != ".qcow2":
        return path.stat().st_size, ""
    with path.open("rb") as stream:
        header = stream.read(32)
    if len(header) < 32 or header[:4] != QCOW2_MAGIC:
        return 0, "could not be parsed as qcow2"
    (backing,) = struct.unpack(">Q", header[8:16])
    (size,) = struct.unpack(">Q", header[24:32])
    return size, "has a backing file" if backing else ""


class Proxmox(FakePve):  # type: ignore[misc]
    """A cluster that takes images. ``directory`` holds what is uploaded; ``durations``: PVE seconds by kind of task."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(**options)
        self.directory = directory
        self.media: dict[tuple[str, str, str], Medium] = {}
        # What each allocated disk was imported from: volume id -> medium. The lab copies the bytes in ``created``.
        self.imported: dict[str, Medium] = {}
        # What each disk of a clone was made from: volume id -> volume id.
        self.origins: dict[str, str] = {}
        self.durations: dict[str, float] = {}
        self.bridges: dict[str, tuple[str, ...]] = {}
        # Fails the first tasks of a kind: kind -> how the task ends.
        self.broken_tasks: dict[str, list[str]] = {}
        # The share of reads that are not answered, and the writes whose answer is lost once: (method, end of the path).
        self.lost_reads = 0.0
        self.lost_answers: set[tuple[str, str]] = set()
        # Called with the kind of each task that begins.
        self.on_task: Callable[[str], object] = lambda _kind: None
        # Called with each request, before it is answered.
        self.on_request: Callable[[Any], object] = lambda _request: None
        self.calls: Counter[tuple[str, str]] = Counter()
        # Seconds; pvestatd broadcasts names, template flags and states of guests every ten.
        self.clock: Callable[[], float] = time.monotonic
        self._broadcast: dict[int, dict[str, Any]] = {}
        self._broadcast_at = -BROADCAST_SECONDS
        # Nodes that have been down for so long that the cluster has forgotten the names of their guests.
        self.forgotten: set[str] = set()
        # Storages whose volumes cannot be renamed, so that no disk of theirs can be moved to another VM.
        self.unmovable: set[str] = set()
        # VM ids that another client takes when the request of a clone was accepted: its task fails.
        self.taken_late: set[int] = set()
        # How many lists of a node are refused, as while one of its VMs is removed.
        self.vanishing = 0
        # With what every upload is refused, before its parts are read.
        self.refuse_uploads: PveError | None = None
        # Uploads that are on their way now, and the most there ever were.
        self.uploading = self.most_uploading = 0
        self.storages["local"]["content"] = "iso,vztmpl,backup,import"

    # --- hooks for a lab ------------------------------------------------------------------------------------------

    async def created(self, vm: Any) -> None:
        """A VM was made; ``imported`` knows where its disks come from."""

    async def configured(self, vm: Any) -> None:
        """A VM was given disks that are new."""

    async def cloned(self, vm: Any) -> None:
        """A VM was cloned; ``origins`` names the volumes that its disks come from."""

    async def started(self, vm: Any) -> None:
        """A VM was started; raise TaskError when it cannot be."""

    async def stopped(self, vm: Any) -> None:
        """A VM was stopped, by force or in order."""

    async def made_template(self, vm: Any) -> None:
        """A VM became a template; its disks are base volumes now."""

    async def destroyed(self, vm: Any) -> None:
        """A VM is gone."""

    async def resized(self, vm: Any, key: str, size: int) -> None:
        """A disk has another size, in bytes."""

    def moved(self, volume_id: str, new_id: str) -> None:
        """A disk was moved to another VM, and has another name."""

    def freed(self, volume_id: str) -> None:
        """A disk is gone."""

    # --- the cluster ----------------------------------------------------------------------------------------------

    @property
    def version_numbers(self) -> tuple[int, int]:
        """The version as numbers: major and minor."""
        major, minor = str(self.version).split(".")[:2]
        return int(major), int(minor)

    def allowed(self, user: str, path: str, priv: str) -> bool:
        """Version 9 split VM.Monitor into VM.GuestAgent.*, and knows it no more."""
        if priv.startswith("VM.GuestAgent.") and self.version_numbers[0] < AGENT_SPLIT_SINCE:
            priv = "VM.Monitor"
        if self.acl is None or user.partition("!")[0] == "root@pam":
            return True
        return self._holds_both(user, path, priv)

    def _holds_both(self, user: str, path: str, priv: str) -> bool:
        """With separated privileges a token may do what both it and its user may (RPCEnvironment.pm, permissions)."""
        return all(self._holds(who, path, priv) for who in {user, user.partition("!")[0]})

    def _holds(self, who: str, path: str, priv: str) -> bool:
        """Return whether a user, or a token by itself, has a privilege on a path, or on a pool that it is in."""
        paths = [path]
        if path.startswith("/vms/"):
            # A guest that is gone, or not yet in its pool, is in none.
            paths += [f"/pool/{name}" for name, ids in self.pools.items() if int(path.split("/")[2]) in ids]
        held = [granted.rstrip("/") for granted, privileges in self.acl.get(who, []) if priv in privileges]
        if any(f"{entry}/".startswith(f"{granted}/") for granted in held for entry in paths):
            return True
        return priv == "VM.Config.Cloudinit" and self._holds(who, path, "VM.Config.Network")

    def entitle(self, identity: str, path: str, *privileges: str) -> None:
        """Give both a token and its user privileges on a path, as the commands of ``doctor --roles`` do."""
        for who in (identity, identity.partition("!")[0]):
            self.grant(who, path, *privileges)

    async def _task_list(self, request: Any) -> Any:
        """Answer with what ended, or with what runs, or both (pve-manager, Tasks.pm: archive, active, all)."""
        found = json.loads((await super()._task_list(request)).text)["data"]
        source, kind = request.query.get("source", "archive"), request.query.get("typefilter")
        wanted = {"archive": {False}, "active": {True}, "all": {True, False}}[source]
        return ok([
            task for task in found if (task["status"] == "RUNNING") in wanted and kind in (None, task["type"])
        ])  # fmt: skip

    def _vm(self, request: Any, priv: str | None = None) -> Any:
        """Find a guest. Rights are looked at first: one that is gone is 403 to a token whose rights come from a pool."""
        path = f"/vms/{request.match_info['vmid']}"
        wanted = [priv] if priv else sorted(CONFIG_PRIVILEGES)
        if not any(self.allowed(request[USER], path, name) for name in wanted):
            raise PveError(403, f"Permission check failed ({path}, {'|'.join(wanted)})")
        return super()._vm(request)

    async def _permissions(self, values: dict[str, Any], user: str) -> dict[str, dict[str, int]]:
        held: dict[str, dict[str, int]] = await super()._permissions(values, user)
        if "!" in user and self.acl is not None:
            held = {path: {name: 1 for name in names if self._holds_both(user, path, name)} for path, names in held.items()}
        if self.version_numbers[0] < AGENT_SPLIT_SINCE:
            for names in held.values():
                agent = [name for name in names if name.startswith("VM.GuestAgent.")]
                names.update(dict.fromkeys(["VM.Monitor"] if agent else [], 1))
                for name in agent:
                    del names[name]
        return held

    def _config_priv(self, key: str) -> str:
        if key in CLOUD_INIT_KEYS or re.fullmatch(r"ipconfig\d+", key):
            return "VM.Config.Cloudinit"
        return "VM.Config.Options" if key in OPTION_KEYS else str(super()._config_priv(key))

    def _record(self, request: Any, body: bytes) -> None:
        path = re.sub(r"/UPID:[^/]+", "/{upid}", request.path.removeprefix("/api2/json"))
        self.calls[request.method, path] += 1
        super()._record(request, body)
        self.on_request(request)

    def broadcast(self) -> None:
        """Let every node tell the cluster now how its guests are, as pvestatd does every ten seconds."""
        self._broadcast_at = self.clock()
        gone = set(self._broadcast) - {vm.vmid for vm in self.vms}
        for vmid in gone:
            del self._broadcast[vmid]
        self._broadcast |= {
            vm.vmid: {"name": vm.name, "status": vm.status, "template": 1 if vm.template else 0}
            for vm in self.vms if self.nodes.get(vm.node, {}).get("online", True)
        }  # fmt: skip

    def set_node_offline(self, node: str, offline: bool = True) -> None:  # noqa: FBT001, FBT002
        """Take a node offline; what it broadcast last is known for some minutes, unless it is in ``forgotten``."""
        self.broadcast()
        super().set_node_offline(node, offline)

    async def _resources(self, request: Any) -> Any:
        """Answer with what was broadcast last: measured on Proxmox VE 9.2, where it was up to 8.4 s late.

        A guest that is newer has neither name nor state (pve-manager, PVE::API2Tools::extract_vm_stats).
        """
        if self.clock() - self._broadcast_at >= BROADCAST_SECONDS:
            self.broadcast()
        found = json.loads((await super()._resources(request)).text)["data"]
        for item in found:
            if item.get("type") != "qemu":
                continue
            told = {} if item["node"] in self.forgotten else self._broadcast.get(int(item["vmid"]), {})
            status = item["status"]
            for key in ("name", "template"):
                del item[key]
            item |= {"status": "unknown", **told}
            if status == "unknown":
                item["status"] = status
            # Measured: the pool is shown to who may look at it.
            if "pool" in item and not self.allowed(request[USER], f"/pool/{item['pool']}", "Pool.Audit"):
                del item["pool"]
        return ok(found)

    def _routes_bridges(self) -> list[Any]:
        return [
            ("GET", "/nodes/{node}/network", self._network), ("GET", "/cluster/nextid", self._next_id),
            ("PUT", "/nodes/{node}/qemu/{vmid}/resize", self._resize),
            ("POST", "/nodes/{node}/qemu/{vmid}/move_disk", self._move_disk),
        ]  # fmt: skip

    async def _network(self, values: dict[str, Any], user: str) -> list[dict[str, Any]]:
        # pve-manager, Network.pm: of the bridges, those that the caller may use.
        names = self.bridges.get(values["node"], ("vmbr0",))
        return [
            {"iface": name, "type": "bridge", "active": 1, "autostart": 1, "method": "manual", "method6": "manual"}
            for name in names if self.allowed(user, f"/sdn/zones/localnetwork/{name}", "SDN.Use")
        ]  # fmt: skip

    async def _next_id(self, values: dict[str, Any], _user: str) -> str:
        wanted = values.get("vmid")
        if wanted is not None:
            if self._qm_taken(int(wanted)):
                raise param_error(vmid=f"VM {wanted} already exists")
            return str(wanted)
        return str(next(number for number in range(100, 10**9) if not self._qm_taken(number)))

    def _task_view(self, task: dict[str, Any], listing: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002
        # pve-manager, Tasks.pm: what has not ended is listed as RUNNING.
        found: dict[str, Any] = super()._task_view(task, listing)
        return {"status": "RUNNING", **found} if listing else found

    async def task(self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **options: Any) -> Any:
        """Start a task; the lab's hook follows what fakepve does, and ``broken_tasks`` and ``durations`` come first."""
        hooks: dict[str, Callable[[Any], Awaitable[None]]] = {
            "qmcreate": self.created, "qmclone": self._cloned, "qmstart": self.started, "qmstop": self.stopped,
            "qmshutdown": self.stopped, "qmreboot": self.started, "qmtemplate": self.made_template,
            "qmdestroy": self.destroyed,
        }  # fmt: skip

        # Set by the test when it asked for the task; the task itself may begin after the answer.
        seconds = self.durations.get(ttype, 0.0)

        async def whole() -> Any:
            self.on_task(ttype)
            await self.pause(seconds)
            if ttype != "imgcopy":
                self._break(vm, ttype)
            note = await body()
            if ttype == "qmclone":
                self._note_origins(self.vm(int(tid)), vm)
            if vm is not None and ttype in hooks:
                await hooks[ttype](vm)
            return note

        return await super().task(node, ttype, tid, user, whole, vm=vm, **options)

    async def acquire(self, vm: Any, holder: Any, wait: float | None = None) -> None:
        """Take the lock of a configuration: each clone of the VM shares it until its disks are copied."""
        loop, patience = asyncio.get_running_loop(), self.lock_wait if wait is None else wait
        deadline = loop.time() + patience * self.time_scale
        while self._is_cloned(vm.vmid):
            if loop.time() >= deadline:
                raise TaskError(lock_timeout(vm.vmid))
            await asyncio.sleep(LOCK_POLL_SECONDS)
        await super().acquire(vm, holder, wait)

    def _is_cloned(self, vmid: int) -> bool:
        return any(
            task["type"] == "qmclone" and task["id"] == str(vmid) and task["status"] == "running"
            for task in self.tasks.values()
        )

    async def _do_shutdown(self, vm: Any, user: str, values: dict[str, Any]) -> Any:
        if vm.status == "running":
            return await super()._do_shutdown(vm, user, values)

        async def body() -> None:
            """Do nothing: it is off."""

        return await self.task(vm.node, "qmshutdown", vm.vmid, user, body, vm=vm)

    def _break(self, vm: Any, kind: str) -> None:
        if not self.broken_tasks.get(kind):
            return
        # A creation or a clone that fails removes its incomplete VM.
        if vm is not None and kind in ("qmcreate", "qmclone") and vm in self.vms:
            self.vms.remove(vm)
        raise TaskError(self.broken_tasks[kind].pop(0))

    # --- uploads --------------------------------------------------------------------------------------------------

    @web.middleware
    async def _middleware(self, request: Any, handler: Any) -> Any:
        if request.method == "GET" and self._random.random() < self.lost_reads:
            request.transport.close()
            raise ConnectionResetError("a read is lost")
        response = await super()._middleware(request, handler)
        if isinstance(response, Closing):
            response.force_close()
            if not request.content.is_eof():
                # The real server's answer is lost on the way: whether a client ever reads it is a matter of chance.
                request.transport.abort()
                raise ConnectionResetError("refused while the client still sends")
        for method, ending in set(self.lost_answers):
            if request.method == method and request.path.endswith(ending):
                self.lost_answers.discard((method, ending))
                request.transport.close()
                raise ConnectionResetError("an answer is lost")
        return response

    async def _read_body(self, request: Any) -> bytes:
        """The body of an upload is read by its handler, piece by piece."""
        if request.content_type == "multipart/form-data":
            return b""
        body: bytes = await super()._read_body(request)
        return body

    def place(self, node: str, storage: str) -> str:
        """Return whose content a storage's is on a node: the node's own, or everybody's."""
        return "" if self.storages[storage].get("shared") else node

    async def _upload(self, request: Any) -> Any:
        try:
            return await self._take_upload(request)
        except PveError as refusal:
            if request.content.is_eof() and not isinstance(refusal, WrongPart):
                raise
            return Closing(status=refusal.status, reason=refusal.message)

    async def _take_upload(self, request: Any) -> Any:
        node, user = request.match_info["node"], request[USER]
        name, store = self._file_storage(request, "upload")
        self.require(user, f"/storage/{name}", "Datastore.AllocateTemplate")
        if self.refuse_uploads is not None:
            raise self.refuse_uploads
        self.uploading += 1
        self.most_uploading = max(self.most_uploading, self.uploading)
        try:
            fields, spool = await self._spool(request)
        finally:
            self.uploading -= 1
        try:
            self._judge_upload(name, store, fields)
        except PveError:
            spool.unlink(missing_ok=True)
            raise
        filename, content = fields["filename"], fields["content"]

        async def body() -> str:
            try:
                self._break(None, "imgcopy")
                return self._keep(node, name, f"{content}/{filename}", spool, fields)
            finally:
                spool.unlink(missing_ok=True)

        return ok(await self.task(node, "imgcopy", "", user, body))

    @staticmethod
    def _expect_part(name: str, expected: list[str]) -> list[str]:
        """Return the parts that may follow this one. Raises WrongPart when it may not come here."""
        if name not in expected or (expected == list(UPLOAD_PARTS) and name != expected[0]):
            raise WrongPart(400, f"wrong Content-Disposition: {name}")
        return expected[expected.index(name) + 1 :]

    async def _spool(self, request: Any) -> tuple[dict[str, str], Path]:
        fields: dict[str, str] = {}
        spool = self.directory / f"upload-{id(request):x}"
        spool.parent.mkdir(parents=True, exist_ok=True)
        expected = list(UPLOAD_PARTS)
        try:
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                expected = self._expect_part(part.name, expected)
                if part.filename is None:
                    fields[part.name] = (await part.read(decode=True)).decode()
                    continue
                fields["filename"] = part.filename
                digest = hashlib.sha256()
                with spool.open("wb") as stream:
                    while piece := await part.read_chunk(CHUNK):
                        digest.update(piece)
                        # Zeros take no room on this disk either.
                        stream.seek(len(piece), 1) if piece.count(0) == len(piece) else stream.write(piece)
                    stream.truncate()
                fields["got"] = digest.hexdigest()
        except BaseException:
            spool.unlink(missing_ok=True)
            raise
        return fields, spool

    def _judge_upload(self, name: str, store: dict[str, Any], fields: dict[str, str]) -> None:
        content = fields.get("content", "")
        known = ["iso", "vztmpl"] + (["import"] if self.version_numbers >= IMPORT_SINCE else [])
        if content not in known:
            listed = ", ".join(known)
            raise param_error(content=f"value '{content}' does not have a value in the enumeration '{listed}'")
        if "got" not in fields:
            raise PveError(400, "bad upload request")
        self._need_file_storage(store, "can't upload to storage type '{0}'")
        if content not in split_list(store.get("content")):
            raise die(f"storage '{name}' does not support '{content}' content")
        if content == "import" and not IMPORT_NAME.fullmatch(fields["filename"]):
            raise param_error(filename="invalid filename or wrong extension")

    def _keep(self, node: str, name: str, volume: str, spool: Path, fields: dict[str, str]) -> str:
        expected = fields.get("checksum", "")
        if expected and expected != fields["got"]:
            raise TaskError(f"checksum mismatch: got '{fields['got']}' != expect '{expected}'")
        size, problem = virtual_size(spool.rename(spool.with_suffix(Path(volume).suffix)))
        spool = spool.with_suffix(Path(volume).suffix)
        key = (self.place(node, name), name, volume)
        # A file of the same name is overwritten without a word (Status.pm).
        self._forget(key)
        store, needed = self.storages[name], spool.stat().st_size
        if problem or needed > store.get("avail", needed):
            spool.unlink()
            raise TaskError(problem or f"unable to write to storage '{name}': No space left on device")
        path = self.directory / "media" / (key[0] or "shared") / name / volume
        path.parent.mkdir(parents=True, exist_ok=True)
        spool.rename(path)
        store["avail"] = store.get("avail", needed) - needed
        self.media[key] = Medium(path, fields["got"], needed, size)
        if volume.startswith("iso/"):
            store["files"].add(fields["filename"])
        return f"finished file import successfully, SHA-256 {fields['got']}"

    def _forget(self, key: tuple[str, str, str]) -> bool:
        medium = self.media.pop(key, None)
        if medium is not None:
            medium.path.unlink(missing_ok=True)
            self.storages[key[1]]["avail"] += medium.size
            self.storages[key[1]]["files"].discard(medium.path.name)
        return medium is not None

    async def _content_list(self, values: dict[str, Any], user: str) -> list[dict[str, Any]]:
        node, name = values["node"], values["storage"]
        there = {vm.vmid for vm in self.vms if vm.node == node}
        shared = bool(self.storages.get(name, {}).get("shared"))
        found = [
            item for item in await super()._content_list(values, user)
            if shared or "vmid" not in item or item["vmid"] in there
        ]  # fmt: skip
        for item in found:
            # What was uploaded is as large as it is.
            medium = self.media.get((self.place(node, name), name, str(item["volid"]).split(":", 1)[-1]))
            item["size"] = medium.size if medium else item["size"]
        if values.get("content") in (None, "import") and values.get("vmid") is None:
            for (place, storage, volume), medium in self.media.items():
                if (place, storage) == (self.place(node, name), name) and volume.startswith("import/"):
                    found.append({"volid": f"{name}:{volume}", "content": "import", "format": Path(volume).suffix[1:],
                                  "size": medium.size, "ctime": 0})  # fmt: skip
        return found

    async def _content_delete(self, values: dict[str, Any], user: str) -> Any:
        name, volume = values["storage"], str(values["volume"]).split(":", 1)[-1]
        key = (self.place(values["node"], name), name, volume)
        if key not in self.media:
            return await super()._content_delete(values, user)
        self.require(user, f"/storage/{name}", "Datastore.Allocate")

        async def body() -> str:
            self._forget(key)
            return f"Removed volume '{name}:{volume}'"

        return await self.task(values["node"], "imgdel", name, user, body)

    # --- disks ----------------------------------------------------------------------------------------------------

    def _source(self, vmid: int, key: str, value: Any) -> tuple[str, Medium] | None:
        """Return where a drive of a new VM is imported from: the storage to put it on, and the medium."""
        volume, props = split_drive(value)
        source = props.get("import-from")
        if source is None:
            return None
        target, size = volume_ref(volume)
        if size != "0":
            raise param_error(**{key: "'import-from' requires special syntax - use <storage ID>:0,import-from=<source>"})
        storage, name = volume_ref(source)
        if storage is None:
            raise param_error(**{key: "only root can use an absolute path as 'import-from'"})
        self._store(storage)
        vm = self.vm(vmid)
        medium = self.media.get((self.place(vm.node if vm else "", storage), storage, name))
        if vm is not None and medium is None:
            raise die(f"volume '{source}' does not exist")
        return str(target), medium or Medium(Path(), "", 0, 0)

    def _qm_check_drive(self, user: str, vmid: int, pool: str, key: str, value: Any, default: str) -> None:
        if self._source(vmid, key, value) is None:
            super()._qm_check_drive(user, vmid, pool, key, value, default)
            return
        volume, props = split_drive(value)
        self._qm_image_store(volume_ref(volume)[0], user)
        self._check_access(user, volume_ref(props["import-from"])[0], "import", None, props["import-from"])

    def _qm_new_drive(self, vmid: int, key: str, value: Any, default: str) -> Any:
        volume, props = split_drive(value)
        if volume.endswith(":cloudinit"):
            made = self._cloud_init_drive(vmid, volume_ref(volume)[0] or default)
            return join_drive(made, {**props, "media": "cdrom"}), [made]
        found = self._source(vmid, key, value)
        if found is None:
            return super()._qm_new_drive(vmid, key, value, default)
        storage, medium = found
        made, _format = self._qm_alloc(storage, vmid, None, medium.virtual_size)
        self.imported[made] = medium
        kept = {name: text for name, text in props.items() if name != "import-from"}
        return join_drive(made, {**kept, "size": format_size(medium.virtual_size)}), [made]

    async def _apply_config(self, vm: Any, user: str, p: dict[str, Any]) -> None:
        if not self.quorate:
            # Measured: /etc/pve cannot be written, and the answer does not say why.
            path = f"/etc/pve/nodes/{vm.node}/qemu-server/{vm.vmid}.conf.tmp.1"
            raise die(f"unable to open file '{path}' - Permission denied")
        self._normalise(vm, p)
        new: list[str] = []
        try:
            for key in [key for key in p if DRIVE_KEY.match(key)]:
                self._qm_check_drive(user, vm.vmid, vm.pool, key, p[key], "")
                p[key], made = self._qm_new_drive(vm.vmid, key, p[key], "")
                new += made
            await super()._apply_config(vm, user, p)
            if new:
                await self.configured(vm)
        except BaseException:
            for volume in new:
                self._qm_free(volume)
            raise

    @staticmethod
    def _normalise(vm: Any, p: dict[str, Any]) -> None:
        """Do to a change of the configuration what the real server was seen to do."""
        if p.get("tags"):
            p["tags"] = ";".join(sorted({tag.lower() for tag in re.split(r"[;, ]+", str(p["tags"])) if tag}))
        drives = [key for key in p if DRIVE_KEY.match(key) and key not in vm.config and key not in FIRMWARE_DRIVES]
        order = str(vm.config.get("boot", ""))
        if drives and order.startswith("order=") and "boot" not in p:
            p["boot"] = ";".join([order, *drives])
        deleted = [key for key in str(p.get("delete", "")).split(",") if DRIVE_KEY.match(key)]
        if deleted and int(vm.config.get("protection", 0)):
            raise die(f"can't remove drive '{deleted[0]}' - protection mode enabled")

    def _cloud_init_drive(self, vmid: int, storage: str) -> str:
        name = f"vm-{vmid}-cloudinit"
        store = self.storages[storage]
        if "path" in store:
            name = f"{vmid}/{name}.qcow2"
        if store.get("avail", CLOUD_INIT_BYTES) < CLOUD_INIT_BYTES:
            raise die(f"unable to write to storage '{storage}': No space left on device")
        if "avail" in store:
            store["avail"] -= CLOUD_INIT_BYTES
        volume = {"content": "images", "format": "raw", "size": CLOUD_INIT_BYTES, "vmid": vmid, "ctime": 0}
        store.setdefault("volumes", {})[name] = volume
        return f"{storage}:{name}"

    async def _qm_create(self, values: dict[str, Any], user: str) -> Any:
        """Make a VM. Tags without the right to them on /vms/ID: the request is taken, and the task fails (measured)."""
        vmid = values["vmid"]
        if (there := self.vm(int(vmid))) is not None and there.lock == "create":
            raise die(f"can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout")
        if not values.get("tags") or self.allowed(user, f"/vms/{vmid}", "VM.Config.Options"):
            return await super()._qm_create(values, user)

        async def body() -> None:
            raise TaskError(f"unable to create VM {vmid} - Permission check failed (/vms/{vmid}, VM.Config.Options)")

        return await self.task(values["node"], "qmcreate", vmid, user, body)

    async def _qm_clone(self, values: dict[str, Any], user: str) -> Any:
        self.require(user, f"/vms/{values['vmid']}", "VM.Clone")
        new = int(values["newid"])
        if new not in self.taken_late:
            return await super()._qm_clone(values, user)
        self.taken_late.discard(new)
        self.add_vm(new, "theirs", status="stopped", pool=values.get("pool"))

        async def body() -> None:
            raise TaskError(f"unable to create VM {new}: config file already exists")

        return await self.task(values["node"], "qmclone", values["vmid"], user, body)

    async def _qemu_list(self, request: Any) -> Any:
        if self.vanishing:
            self.vanishing -= 1
            raise die(f"Configuration file 'nodes/{request.match_info['node']}/qemu-server/104.conf' does not exist")
        return await super()._qemu_list(request)

    def _note_origins(self, source: Any, vm: Any) -> None:
        theirs = {key: volume for key, volume, _ in drives_of(source.config, skip_cdrom=True)}
        self.origins.update({volume: theirs[key] for key, volume, _ in drives_of(vm.config, skip_cdrom=True)})

    async def _resize(self, values: dict[str, Any], user: str) -> Any:
        vm, key, wanted = self.find(values["node"], values["vmid"]), values["disk"], str(values["size"])
        self._check_lock(vm)
        volume, props = split_drive(vm.config[key])
        record = self._qm_volume(volume)
        size = size_bytes(wanted.lstrip("+")) + (int(record["size"]) if wanted.startswith("+") else 0)
        if size < int(record["size"]):
            raise die("shrinking disks is not supported")

        async def body() -> None:
            store, more = self.storages[volume_ref(volume)[0]], size - int(record["size"])
            if "avail" in store:
                store["avail"] -= more
            record["size"] = size
            vm.config[key] = join_drive(volume, {**props, "size": format_size(size)})
            await self.resized(vm, key, size)

        return await self.task(vm.node, "resize", vm.vmid, user, body, vm=vm)

    async def _move_disk(self, values: dict[str, Any], user: str) -> Any:
        """Move a disk to another VM. Checked when it is called, and again by the task."""
        vm, key, number = self.find(values["node"], values["vmid"]), str(values["disk"]), int(values.get("target-vmid", 0))
        target_key = str(values.get("target-disk") or key)
        self.require(user, f"/vms/{vm.vmid}", "VM.Config.Disk")
        if not number:
            raise param_error(storage="the fake moves disks to other VMs only")
        self.require(user, f"/vms/{number}", "VM.Config.Disk")
        if number == vm.vmid:
            raise param_error(**{"target-vmid": "must be different than source VMID to move disk to another VM"})
        storage = self._movable(vm, key, number, target_key)
        self.require(user, f"/storage/{storage}", "Datastore.AllocateSpace")
        digests = {vm.vmid: values.get("digest"), number: values.get("target-digest")}
        self._check_digests(digests)
        between = self.durations.get("qmmove", 0.0)

        async def body() -> str:
            target, holder = self.vm(number), f"qmmove to {number}"
            await self.acquire(target, holder)
            try:
                try:
                    self._movable(vm, key, number, target_key)
                    self._check_digests(digests)
                except PveError as refusal:
                    raise TaskError(refusal.message) from refusal
                volume, props = split_drive(vm.config.pop(key))
                made = self._rename_volume(volume, number)
                # The source is written first: for this time the disk is in no configuration.
                await self.pause(between)
                target.config[target_key] = join_drive(made, props)
                self.moved(volume, made)
            finally:
                self.release(target, holder)
            return f"moved disk '{key}' to '{target_key}' of VM {number}"

        return await self.task(vm.node, "qmmove", f"{vm.vmid}-{key}>{number}-{target_key}", user, body, vm=vm)

    def _check_digests(self, digests: dict[int, str | None]) -> None:
        for vmid, digest in digests.items():
            if digest not in (None, "", self.vm(vmid).digest()):
                raise die(f"VM {vmid}: detected modified configuration - file changed by other user? Try again.")

    def _movable(self, vm: Any, key: str, number: int, target_key: str) -> str:
        """Return the storage of a disk that may be moved now. Raises PveError with the words of the real one."""
        target = self.vm(number)
        if target is None:
            raise die(f"could not find target VM {number}")
        if target.node != vm.node:
            raise die(f"Both VMs need to be on the same node ({vm.node} != {target.node})")
        for guest in (vm, target):
            self._check_lock(guest)
        if vm.template or target.template:
            raise die("Can't move disks from or to template VMs")
        if key not in vm.config:
            raise die(f"Disk '{key}' for VM '{vm.vmid}' does not exist")
        if target_key in target.config:
            raise die(f"Target disk key '{target_key}' is already in use for VM '{number}'")
        volume, _ = split_drive(vm.config[key])
        if any(volume in str(value) for snapshot in vm.snapshots.values() for value in snapshot.values()):
            raise die("Can't move disk used by a snapshot to another VM")
        storage = str(volume_ref(volume)[0])
        if storage in self.unmovable:
            raise die("Storage does not support moving of this disk to another VM")
        if vm.status == "running" and not key.startswith("unused"):
            raise die("Cannot move disk to another VM while the source VM is running - detach first")
        return storage

    def _rename_volume(self, volume: str, number: int) -> str:
        storage, name = volume_ref(volume)
        record = self.storages[storage]["volumes"].pop(name)
        fresh = str(self._qm_free_name(storage, number, record["format"]))
        fresh = f"{number}/{fresh}" if "/" in str(name) else fresh
        self.storages[storage]["volumes"][fresh] = {**record, "vmid": number}
        return f"{storage}:{fresh}"

    async def _cloned(self, vm: Any) -> None:
        for key, volume, props in drives_of(vm.config):
            if DRIVE_KEY.match(key) and is_cdrom(volume, props) and "-cloudinit" in volume:
                made = self._cloud_init_drive(vm.vmid, str(volume_ref(volume)[0]))
                vm.config[key] = join_drive(made, props)
        await self.cloned(vm)

    def _qm_free(self, volid: str) -> None:
        super()._qm_free(volid)
        self.imported.pop(volid, None)
        self.origins.pop(volid, None)
        self.freed(volid)

    # --- what a test compares -------------------------------------------------------------------------------------

    def inventory(self) -> dict[str, Any]:
        """Return everything that a run must leave as it was: machines, media, volumes and free space."""
        return {
            "machines": sorted((vm.vmid, vm.node, vm.name, vm.status, bool(vm.template)) for vm in self.vms),
            "media": sorted(key for key in self.media),
            "volumes": {name: sorted(store.get("volumes", {})) for name, store in self.storages.items()},
            "space": {name: store.get("avail") for name, store in self.storages.items()},
            "files": sorted(str(path) for path in self.directory.rglob("*") if path.is_file()),
            "pools": {name: sorted(ids) for name, ids in self.pools.items()},
        }
