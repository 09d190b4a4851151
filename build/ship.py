"""The verbs that work on a cluster: which settings, which tokens, and what is told at the end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from build import artifact, files, packer_proxmox, preflight, proxmox_build, proxmox_verify, publish, pve, qm, roles
from build import spec as specs
from build.cache import Cache
from build.cluster import Role, Settings, default_secrets, token
from build.errors import GoldsmithError, SpecError
from build.packer import Packer
from build.project import Project
from build.proof import Trust
from build.publish_media import OverApi
from build.release_ledger import Book

# What a doctor without an artifact asks for: a usual image, and its disk.
USUAL = preflight.Need(upload=2 << 30, disk=16 << 30)


def settings_of(spec: specs.Spec) -> Settings:
    """Return the cluster of golden.yaml; raise SpecError when it names none."""
    if spec.proxmox is None:
        raise SpecError(
            "golden.yaml has no section proxmox",
            hint="add: proxmox: {host: ..., nodes: [...], storage: ..., media: ..., pool: ...}",
        )
    return spec.proxmox


def connect(settings: Settings, role: Role, secrets: Path | None) -> pve.Api:
    """Connect with the token of a role; ``secrets`` is the file of the tokens, when it is not the usual one."""
    found = token(role, secrets=secrets or default_secrets(os.environ), environment=os.environ)
    return pve.Api(settings, found)


def _nodes(settings: Settings, wanted: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in wanted if name not in settings.nodes]
    if unknown:
        raise SpecError(
            f"golden.yaml: proxmox.nodes has no {', '.join(unknown)}", hint=f"it has: {', '.join(settings.nodes)}"
        )
    return tuple(wanted) or settings.nodes


def ship(
    project: Project, cache: Cache, *, directory: Path | None, nodes: Sequence[str], secrets: Path | None,
    over_ssh: bool = False,
) -> list[publish.Template]:
    """Publish an artifact (the newest one without a directory) to the cluster of golden.yaml.

    ``over_ssh``: for Proxmox VE before 8.4, whose API takes no images.
    """
    spec = specs.load(project.spec)
    settings = settings_of(spec)
    chosen = _nodes(settings, nodes)
    found = artifact.load(directory.absolute()) if directory else artifact.newest(project.artifacts)
    with ExitStack() as stack:
        publisher, verifier = _both(stack, cache, settings, secrets)
        judge = proxmox_verify.Judge(
            api=verifier, settings=settings, manifest=found.manifest, tests=project.image_tests,
            scratch=cache.root / "clones", logs=cache.root / "logs" / "publish",
        )  # fmt: skip
        return publish.publish(
            publish.Job(
                artifact=found, settings=settings, api=publisher, verifier=judge.verify, nodes=chosen,
                tokens={Role.PUBLISHER: publisher, Role.VERIFIER: verifier},
                media=lambda api: qm.OverSsh(api, settings, qm.Ssh()) if over_ssh else OverApi(api, settings),
                over_ssh=over_ssh, trust=Trust.of(spec.releases, project.root),
                book=Book(project.root / spec.releases.ledger),
            )
        )  # fmt: skip


def build_on(
    project: Project, cache: Cache, *, medium: Path, spec: specs.Spec, nodes: Sequence[str], secrets: Path | None,
    packer: str, minutes: int,
) -> publish.Template:  # fmt: skip
    """Install from ``medium`` on a node of golden.yaml (its first one unless one is named), and keep the template."""
    settings = settings_of(spec)
    if len(nodes) > 1:
        raise SpecError("a build runs on one node", hint="give --node once; the next node is a build of its own")
    found = packer_proxmox.locate(tools=project.packer / "tools", cache=cache.root / "packer", chosen=packer)
    with ExitStack() as stack:
        tokens = dict(zip((Role.PUBLISHER, Role.VERIFIER), _both(stack, cache, settings, secrets), strict=True))
        job = installation(
            project, spec, settings, medium=medium, node=_nodes(settings, nodes)[0], tokens=tokens, packer=found,
            scratch=cache.root / "clones", logs=cache.root / "logs" / "build-on-proxmox", seconds=minutes * 60,
        )  # fmt: skip
        return proxmox_build.build(job)


def installation(
    project: Project, spec: specs.Spec, settings: Settings, *, medium: Path, node: str, tokens: Mapping[Role, pve.Api],
    packer: Packer, scratch: Path, logs: Path, seconds: int,
) -> proxmox_build.Job:  # fmt: skip
    """Return a build on a node that two clones judge there; ``seconds``: how long the installer may take."""
    judge = proxmox_verify.Judge(
        api=tokens[Role.VERIFIER], settings=settings, tests=project.image_tests, scratch=scratch, logs=logs,
        manifest={"inputs": {"spec": spec.as_inputs()}, "image": {"virtual_mib": spec.disk.size_mib}},
    )  # fmt: skip
    return proxmox_build.Job(
        medium=proxmox_build.Medium(medium, files.sha256_file(medium)), spec=spec, settings=settings, node=node,
        api=tokens[Role.PUBLISHER], tokens=tokens, verifier=judge.verify, packer=packer, templates=project.packer,
        logs=logs, seconds=seconds,
    )  # fmt: skip


def _both(stack: ExitStack, cache: Cache, settings: Settings, secrets: Path | None) -> tuple[pve.Api, pve.Api]:
    """Connect as publisher and verifier, alone on this host."""
    # Two runs of one host would take each other's machines for what a killed run left.
    stack.enter_context(files.lock(cache.root / "publish.lock", waiting="another publish is running: waiting for it"))
    publisher = stack.enter_context(connect(settings, Role.PUBLISHER, secrets))
    return publisher, stack.enter_context(connect(settings, Role.VERIFIER, secrets))


def look(project: Project, *, secrets: Path | None) -> list[preflight.Finding]:
    """Look at the cluster with every token there is; a token that is missing is a finding too."""
    settings = settings_of(specs.load(project.spec))
    findings: list[preflight.Finding] = []
    with ExitStack() as stack:
        tokens: dict[Role, pve.Api] = {}
        for role in Role:
            try:
                tokens[role] = stack.enter_context(connect(settings, role, secrets))
            except GoldsmithError as error:
                findings.append(preflight.Finding(f"token: {role}", error.brief, error.hint))
        if not tokens:
            return findings
        view = preflight.look(
            next(iter(tokens.values())), settings, nodes=settings.nodes, need=_need(project), tokens=tokens
        )  # fmt: skip
        return [*findings, *view.findings]


def _need(project: Project) -> preflight.Need:
    try:
        image = artifact.newest(project.artifacts).manifest["image"]
    except SpecError:
        return USUAL
    return preflight.Need(int(image["bytes"]), int(image["virtual_mib"]) << 20)


def major(project: Project, *, secrets: Path | None) -> int:
    """Ask the cluster for its major version, with the first token there is."""
    settings = settings_of(specs.load(project.spec))
    problem: GoldsmithError | None = None
    for role in Role:
        try:
            with connect(settings, role, secrets) as api:
                return api.major()
        except GoldsmithError as error:
            problem = problem or error
    raise SpecError(
        "the cluster's version is not known", details=problem.brief if problem else "", hint="give it: --pve 8, or --pve 9"
    )


def grants(project: Project, *, major: int) -> list[str]:
    """Return the commands that make pool, user, roles and tokens on a cluster of that version, for root on a node."""
    return roles.commands(settings_of(specs.load(project.spec)), major=major)
