"""A Proxmox VE for tests: fakepve, and what publishing an image needs of the real one beyond it.

It is no Proxmox: nothing boots here. What fakepve lacks or does otherwise is added, each with its reason:

* content type ``import``: uploads are streamed to a file, because an image does not fit into memory; extension, name,
  checksum and backing file are judged as Proxmox does (pve-storage, Status.pm and Plugin.pm);
* media belong to a node unless their storage is shared: fakepve has one list for all nodes;
* ``import-from`` when a VM is made (qemu-server, Qemu.pm: size 0, from content ``import`` or ``images``);
* cloud-init drives are called vm-ID-cloudinit, and a clone gets one of its own (Qemu.pm, clone_vm);
* a disk that a change of the configuration asks for is made (Qemu.pm, update_vm_api): fakepve keeps the words;
* tags given at creation are checked on /vms/ID alone, and a clone inherits protection (both Qemu.pm);
* privileges of cloud-init keys and options as Qemu.pm has them; VM.Monitor before version 9;
* a machine that is off can be told to shut down, which does nothing (qemu-server, API2/Qemu.pm, vm_shutdown);
* a disk that is resized has its new size; a running task is listed as RUNNING (pve-manager, Tasks.pm);
* the bridges of a node, of those the caller may see; ``/cluster/nextid`` answers what is free.

The lab puts machines behind it by overriding the hooks ``created``, ``configured``, ``cloned``, ``started``, ``stopped``,
``made_template``, ``resized``, ``destroyed`` and ``freed``.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from fakepve import FakePve
from fakepve.lxc import format_size
from fakepve.model import PveError, TaskError
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
# qemu-server, PVE/API2/Qemu.pm: which privilege a key of a VM's configuration needs, where fakepve answers otherwise.
OPTION_KEYS = frozenset({"bios", "ostype", "template", "acpi", "kvm", "hotplug", "localtime", "tablet", "freeze"})
CLOUD_INIT_KEYS = frozenset({"ciuser", "cipassword", "citype", "ciupgrade", "sshkeys", "nameserver", "searchdomain"})


@dataclass(frozen=True)
class Medium:
    """An uploaded image: where its bytes are, their SHA-256, and how large a disk it is."""

    path: Path
    sha256: str
    size: int
    virtual_size: int
    problem: str = ""


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
        # The share of reads that nobody answers, and the writes whose answer is lost once: (method, end of the path).
        self.lost_reads = 0.0
        self.lost_answers: set[tuple[str, str]] = set()
        # Is told the kind of each task that begins.
        self.on_task: Callable[[str], object] = lambda _kind: None
        # Is told of each request, before it is answered.
        self.on_request: Callable[[Any], object] = lambda _request: None
        self.calls: Counter[tuple[str, str]] = Counter()
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
        return bool(super().allowed(user, path, priv))

    async def _permissions(self, values: dict[str, Any], user: str) -> dict[str, dict[str, int]]:
        held: dict[str, dict[str, int]] = await super()._permissions(values, user)
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

    def _routes_bridges(self) -> list[Any]:
        return [
            ("GET", "/nodes/{node}/network", self._network), ("GET", "/cluster/nextid", self._next_id),
            ("PUT", "/nodes/{node}/qemu/{vmid}/resize", self._resize),
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

        async def whole() -> Any:
            self.on_task(ttype)
            await self.pause(self.durations.get(ttype, 0.0))
            if ttype != "imgcopy":
                self._break(vm, ttype)
            note = await body()
            if ttype == "qmclone":
                self._note_origins(self.vm(int(tid)), vm)
            if vm is not None and ttype in hooks:
                await hooks[ttype](vm)
            return note

        return await super().task(node, ttype, tid, user, whole, vm=vm, **options)

    async def _do_shutdown(self, vm: Any, user: str, values: dict[str, Any]) -> Any:
        if vm.status == "running":
            return await super()._do_shutdown(vm, user, values)

        async def body() -> None:
            """Do nothing: it is off."""

        return await self.task(vm.node, "qmshutdown", vm.vmid, user, body, vm=vm)

    def _break(self, vm: Any, kind: str) -> None:
        if not self.broken_tasks.get(kind):
            return
        # A creation or a clone that fails takes its half-made VM with it.
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
        node, user = request.match_info["node"], request[USER]
        name, store = self._file_storage(request, "upload")
        self.require(user, f"/storage/{name}", "Datastore.AllocateTemplate")
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

    async def _spool(self, request: Any) -> tuple[dict[str, str], Path]:
        fields: dict[str, str] = {}
        spool = self.directory / f"upload-{id(request):x}"
        spool.parent.mkdir(parents=True, exist_ok=True)
        try:
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
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

    def _qm_check_tags(self, user: str, values: dict[str, Any]) -> None:
        if values.get("tags") and not self.allowed(user, f"/vms/{values['vmid']}", "VM.Config.Options"):
            raise PveError(403, f"Permission check failed (/vms/{values['vmid']}, VM.Config.Options)")

    async def _qm_create(self, values: dict[str, Any], user: str) -> Any:
        self._qm_check_tags(user, values)
        return await super()._qm_create(values, user)

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
