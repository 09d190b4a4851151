"""Every reader of external text is fuzzed: it returns a result or raises its own error, in bounded time.

The input is mutated from good samples by a seeded generator, so that the default run is the same everywhere and takes
seconds. ``GOLDSMITH_FUZZ_SECONDS=60`` runs each reader for that long, from ``GOLDSMITH_FUZZ_SEED`` (default: 1) on. An
input that failed goes into ``tests/data/fuzz/READER/``, whose files are read in every run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from build.artifact import artifact
from build.core import errors
from build.packages import lock
from build.release import entry, ledger
from build.replace import record as records
from build.spec import golden_yaml
from tests.unit.artifacts import committable
from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT

CORPUS = ROOT / "tests" / "data" / "fuzz"
SECONDS = float(os.environ.get("GOLDSMITH_FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("GOLDSMITH_FUZZ_SEED", "1"))
ROUNDS = 60
# One input, on a processor that others use too.
SLOWEST_SECONDS = 20.0

golden = golden_module("golden.core")
data_module = golden_module("golden.data")
kept_module = golden_module("golden.kept")
site = golden_module("golden.site")
bundles = golden_module("golden.bundle")
archives = golden_module("golden.archive")
certificates = golden_module("golden.certificates")
releases = golden_module("golden.releases")
contracts = golden_module("golden.contract")
contract_keys = golden_module("golden.contract_keys")
grants = golden_module("golden.grants")

TOKENS = (
    b"2026-02-30", b"9" * 5000, b"0x" + b"f" * 6000, b"&a [*a, *a]", b"*a", b"<<: *a", b"!!int x", b"!!timestamp x",
    b"!!bool x", b"!!binary =", b"!!python/object:os.system x", b"[" * 3000, b"{" * 3000, b"- " * 2000, b"? " * 2000,
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", "\u2028\u202e\u00b2".encode(), b"\t", b"\r", b"\x1b[2J", b"null", b"true",
    b".inf", b"1e999", b"-1", b"''", b'"', b"{}", b"[]", b": ", b"\n", b"1:59" * 500, b"~", b"%YAML 9.9", b"---", b"...",
    b"|", b">", b"@", b"`", b"a: 1\na: 1\n", b"18446744073709551616",
)  # fmt: skip


def mutated(sample: bytes, draw: random.Random) -> bytes:
    """Return a sample with some of its bytes changed, removed, repeated, or replaced by a token of the list."""
    content = bytearray(sample)
    for _ in range(draw.randint(1, 4)):
        begin = draw.randint(0, len(content))
        end = min(len(content), begin + draw.choice((0, 1, 4, 30, 600)))
        match draw.randrange(5):
            case 0:
                content[begin:end] = draw.choice(TOKENS)
            case 1:
                content[begin:begin] = draw.choice(TOKENS)
            case 2:
                content[begin:end] = b""
            case 3:
                content[begin:begin] = content[begin:end] * draw.randint(1, 20)
            case _:
                content[begin:end] = draw.randbytes(end - begin)
    return bytes(content)


# --- the readers: each takes bytes, and may raise its own error only ----------------------------------------------------


def read_site(content: bytes, _place: Path) -> None:
    settings, faults = site.parse_bytes(content, name="site.yaml")
    assert set(settings) == set(site.defaults())
    assert len(faults) <= site.MOST_FAULTS
    # What golden-site writes for others: plain data, and lines that a console shows as they are.
    json.dumps([settings, site.as_json(faults)])
    assert all(str(fault).isprintable() and len(str(fault)) < 2000 for fault in faults), faults


def read_hypervisor(content: bytes, place: Path) -> None:
    (place / "sku").write_bytes(content)
    settings, _faults = site.collect(place / "absent", hypervisor=place / "sku")
    assert set(settings) == set(site.defaults())


def read_contract(content: bytes, place: Path) -> None:
    (place / contracts.NAME).write_bytes(content)
    contract, faults = contracts.load(place)
    assert set(contract) == set(contract_keys.CONTRACT.keys)
    assert all(str(fault).isprintable() and len(str(fault)) < 2000 for fault in faults), faults
    if not faults:
        grants.files(contract)


def read_manage(content: bytes, place: Path) -> None:
    (place / "manage.py").write_bytes(content)
    contracts.load(place)


def read_bundle(content: bytes, place: Path) -> None:
    (place / "bundle").write_bytes(content)
    shutil.rmtree(place / "into", ignore_errors=True)
    bundles.unpack(bundles.read(place / "bundle", hashlib.sha256(content).hexdigest()), place / "into")


def read_backup(content: bytes, _place: Path) -> None:
    archives.read(io.BytesIO(content), archives.Nowhere())


def read_certificate(content: bytes, place: Path) -> None:
    (place / "chain.pem").write_bytes(content)
    for certificate in certificates.read_chain(place / "chain.pem"):
        certificate.covers("www.example.org")


def read_release(content: bytes, place: Path) -> None:
    known = releases.Releases(place, place)
    (place / "releases" / "image").mkdir(parents=True, exist_ok=True)
    (place / "releases" / "image" / releases.RECORD).write_bytes(content)
    known.listed()
    known.prune()


def read_manifest(content: bytes, place: Path) -> None:
    (place / artifact.MANIFEST).write_bytes(content)
    artifact.load(place)


def read_spec(content: bytes, place: Path) -> None:
    (place / "golden.yaml").write_bytes(content)
    golden_yaml.load(place / "golden.yaml")


def read_lock(content: bytes, place: Path) -> None:
    (place / "rootfs.lock").write_bytes(content)
    lock.parse(place / "rootfs.lock")


def read_ledger(content: bytes, _place: Path) -> None:
    ledger.parse(content.decode(errors="replace"), "stable.jsonl")


def read_entry(content: bytes, _place: Path) -> None:
    entry.line_of(content.decode(errors="replace"))


# --- what is mutated ---------------------------------------------------------------------------------------------------

SITE = b"""admin_cidrs: [192.0.2.0/24, "2001:db8:1::/64"]
server_names: [www.example.org, example.org]
certificate: {acme: {directory: "https://acme.example.org/directory", email: hostmaster@example.org}}
backup:
  recipient: age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
  target: scp://b@s.example.org/b
alerts:
  mail: {server: "mail.example.org:587", from: golden@example.org, to: admin@example.org}
"""
HYPERVISOR = b'golden:{"admin_cidrs": ["192.0.2.0/24"], "server_names": ["www.example.org"]}'


def tar_of(files: dict[str, bytes], kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def bundle_sample() -> bytes:
    lock_file = b"demo==1 --hash=sha256:" + b"0" * 64 + b"\n"
    files = {"requirements.lock": lock_file, "code/manage.py": b"print()", "wheels/demo.whl": b"x"}
    facts = {name: {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()} for name, body in files.items()}
    manifest = json.dumps({"format": bundles.FORMAT, "name": "demo", "files": facts}).encode()
    return tar_of({"manifest.json": manifest, **files}, tarfile.PAX_FORMAT)


def backup_sample() -> bytes:
    buffer = io.BytesIO()
    writer = archives.Writer(buffer)
    database = writer.add_dump(io.BytesIO(b"dump" * 50))
    facts = {"made": "2026-11-22T02:00:00+00:00", "host": "clone", "versions": {"postgresql": "17.6"}}
    tables = {"public.page": {"rows": 1, "content": "5"}}
    media = {"files": 0, "bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    writer.finish({"format": archives.FORMAT, **facts, "database": {**database, "tables": tables}, "media": media})
    return buffer.getvalue()


def certificate_sample() -> bytes:
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    argv += ["-keyout", "/dev/null", "-subj", "/CN=www.example.org", "-days", "30"]
    argv += ["-addext", "subjectAltName=DNS:www.example.org"]
    return subprocess.run(argv, capture_output=True, check=True, timeout=120).stdout


def record_sample() -> bytes:
    record = {"name": "demo", "deployed": "2026-01-02T03:04:05+00:00", "sha256": "0" * 64, "static": ["a.css"]}
    return json.dumps(record).encode()


def manifest_sample() -> bytes:
    sources = {"nginx": {"source": ["nginx", "1.26-1"], "built_using": [["go", "1"]], "certain": True}}
    return json.dumps(committable(sources=sources, updates={"looked": False, "reason": "x"})).encode()


def sample_of(path: str, lines: int | None = None) -> Callable[[], bytes]:
    return lambda: b"\n".join((ROOT / path).read_bytes().split(b"\n")[:lines])


MANAGE = b"""import os
if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
"""


def contract_sample() -> bytes:
    page = (ROOT / "docs/reference/golden-app-yaml.md").read_text(encoding="utf-8")
    return page.partition("```yaml\n")[2].partition("```")[0].encode()


Reader = tuple[Callable[[bytes, Path], None], Callable[[], bytes], tuple[type[Exception], ...]]
DATA_DISK = b"""{"layout": 1, "site": "web1", "system": "0123456789abcdef0123456789abcdef", "versions": {"postgresql": 17},
 "owners": {"users": {"gunicorn": 995}, "groups": {"gunicorn": 995}}}"""


def read_data_disk(content: bytes, place: Path) -> None:
    """Read the description of a data disk, and what a system does with it before it changes anything."""
    (place / "site.json").write_bytes(content)
    marker = data_module.read_marker(place)
    data_module.require_usable(marker, own="", expected="", versions={"postgresql": 17})
    kept_module.changes(marker.get("owners", {}), {"users": {"gunicorn": 996}, "groups": {}})


def read_replacement(content: bytes, _place: Path) -> None:
    """Read the record of a replacement in a description that anybody with VM.Config.Options can write."""
    records.parse(content.decode(errors="replace"))


REPLACEMENT = records.inscribed("text", records.Record(
    "web1", "golden-1.0.0", records.Phase.SWITCHING, "a", "b", "2026-01-01T00:00:00Z", "scsi1", 1, 0,
)).encode()  # fmt: skip

READERS: dict[str, Reader] = {
    "data-disk": (read_data_disk, lambda: DATA_DISK, (golden.Problem,)),
    "replacement": (read_replacement, lambda: REPLACEMENT, ()),
    "site": (read_site, lambda: SITE, ()),
    "hypervisor": (read_hypervisor, lambda: HYPERVISOR, ()),
    "contract": (read_contract, contract_sample, ()),
    "manage": (read_manage, lambda: MANAGE, ()),
    "bundle": (read_bundle, bundle_sample, (golden.Problem,)),
    "backup": (read_backup, backup_sample, (golden.Problem,)),
    "certificate": (read_certificate, certificate_sample, (golden.Problem,)),
    "release": (read_release, record_sample, ()),
    "manifest": (read_manifest, manifest_sample, (errors.GoldsmithError,)),
    "spec": (read_spec, sample_of("golden.yaml"), (errors.GoldsmithError,)),
    "lock": (read_lock, sample_of("overlays/rootfs.lock", 12), (errors.GoldsmithError,)),
    "ledger": (read_ledger, lambda: b'{"missing": [1, 2], "hash": "' + b"0" * 64 + b'"}\n', (errors.GoldsmithError,)),
    "entry": (read_entry, lambda: b'{"missing": [1, 2], "hash": "' + b"0" * 64 + b'"}', (ValueError, TypeError, KeyError)),
}


def attempt(name: str, content: bytes, place: Path) -> None:
    """Pass an input to a reader; on an error that is not the reader's own, save the input and fail."""
    reader, _sample, own = READERS[name]
    place.mkdir(exist_ok=True)
    begun = time.monotonic()
    try:
        reader(content, place)
    except own:
        pass
    except Exception as error:  # noqa: BLE001 (any other error is what this looks for)
        kept = place.parent / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
        kept.write_bytes(content)
        pytest.fail(f"{name}: {type(error).__name__}: {error}; the input is in {kept}, copy it to {CORPUS / name}")
    seconds = time.monotonic() - begun
    assert seconds < SLOWEST_SECONDS, (name, seconds, content[:200])


@pytest.mark.parametrize("name", READERS)
def test_a_good_sample_is_taken(tmp_path: Path, name: str) -> None:
    """Otherwise every mutation would fail at the same place, and nothing after it would be read."""
    reader, sample, _own = READERS[name]
    reader(sample(), tmp_path)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_cases_that_failed_once(tmp_path: Path, path: Path) -> None:
    attempt(path.parent.name, path.read_bytes(), tmp_path / "place")


@pytest.mark.parametrize("name", READERS)
def test_mutations(tmp_path: Path, name: str) -> None:
    sample = READERS[name][1]()
    draw = random.Random(f"{name} {SEED}")
    until = time.monotonic() + SECONDS
    rounds = 0
    while rounds < ROUNDS or time.monotonic() < until:
        attempt(name, mutated(sample, draw), tmp_path / "place")
        rounds += 1
