#!/usr/bin/env python3
"""A current Packer with the proxmox plugin, as far as our source uses it: it makes the same calls to the API.

Keys of the plan, all optional: ``version``; ``plugins``, lines for ``plugins installed``; ``ending``: "fail" to fail after
the machine was made, and take it away like the real one, "drop" to fail and leave it, "hang" to wait forever.
Each call is noted in packer.calls; what came by the environment is noted without the token.
"""

import json
import os
import signal
import ssl
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path


class Api:
    def __init__(self) -> None:
        self.url = os.environ["PROXMOX_URL"]
        token = f"PVEAPIToken={os.environ['PROXMOX_USERNAME']}={os.environ['PROXMOX_TOKEN']}"
        self.headers = {"Authorization": token}
        self.context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])

    def ask(self, method: str, path: str, **values: object) -> object:
        data = urllib.parse.urlencode(values).encode() if values else None
        request = urllib.request.Request(self.url + path, data=data, headers=self.headers, method=method)
        with urllib.request.urlopen(request, context=self.context, timeout=30) as answer:
            return json.load(answer)["data"]

    def task(self, method: str, path: str, **values: object) -> None:
        upid = str(self.ask(method, path, **values))
        while True:
            status = self.ask("GET", f"/nodes/{upid.split(':')[1]}/tasks/{urllib.parse.quote(upid)}/status")
            if status["status"] == "stopped":  # type: ignore[index]
                if status["exitstatus"] != "OK":  # type: ignore[index]
                    raise RuntimeError(status["exitstatus"])  # type: ignore[index]
                return
            time.sleep(0.05)


def main() -> int:
    me, arguments = Path(sys.argv[0]), sys.argv[1:]
    environment = {name: text for name, text in os.environ.items() if name != "PROXMOX_TOKEN"}
    note = {"argv": arguments, "cwd": os.getcwd(), "env": environment, "pid": os.getpid()}  # noqa: PTH109
    with me.with_name(f"{me.name}.calls").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(note) + "\n")
    plan = json.loads(me.with_name(f"{me.name}.json").read_text(encoding="utf-8"))
    if arguments[0] == "version":
        print(f"Packer v{plan.get('version', '1.16.0')}")
        return 0
    if arguments[0] == "plugins":
        print("\n".join(plan.get("plugins", [])))
        return 0
    (name,) = [word.removeprefix("-var-file=") for word in arguments if word.startswith("-var-file=")]
    return build(plan.get("ending", ""), json.loads(Path(name).read_text(encoding="utf-8")))


def build(ending: str, given: dict) -> int:  # type: ignore[type-arg]
    api, path = Api(), f"/nodes/{given['node']}/qemu/{given['vm_id']}"
    print("==> proxmox-iso.golden: Creating VM", flush=True)
    api.task(
        "POST", f"/nodes/{given['node']}/qemu", vmid=given["vm_id"], name=given["vm_name"], pool=given["pool"],
        description="Packer ephemeral build VM", agent=0, boot="order=ide2", cores=given["cores"], sockets=1, kvm=1,
        cpu=given["cpu_type"], memory=given["memory"], ostype="l26", scsihw="virtio-scsi-single", onboot=0,
        scsi0=f"{given['storage']}:{given['disk_size'].rstrip('G')},format=raw,iothread=1,cache=none",
        ide2=f"{given['iso_file']},media=cdrom", serial0="socket", serial1="socket",
    )  # fmt: skip
    if ending == "drop":
        return 1
    api.task("POST", f"{path}/status/start")
    if ending == "hang":
        # The first process of a PID namespace ignores signals that it has no handler for.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
        time.sleep(86400)
    time.sleep(float(given["install_time"].rstrip("s")))
    if ending == "fail":
        print("==> proxmox-iso.golden: Error converting VM to template, could not stop: VM quit/powerdown failed")
        api.task("POST", f"{path}/status/stop")
        api.task("DELETE", path)
        return 1
    api.task("POST", f"{path}/status/shutdown")
    # As version 1.2.4 of the plugin does with skip_convert_to_template.
    api.ask("PUT", f"{path}/config", ide2="none,media=cdrom")
    api.task("POST", f"{path}/status/start")
    print(f"--> proxmox-iso.golden: A VM was created: {given['vm_id']}")
    return 0


sys.exit(main())
