"""The command ``publish``: publishes a verified artifact to Proxmox VE as a template, and tests it there with two clones."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from build.artifact import artifact, find
from build.artifact.verification import Trust
from build.cli import cluster
from build.cli import options as common
from build.publish import node_verify, publish, ssh_import
from build.publish.upload import OverApi
from build.release.ledger import LedgerFile
from build.spec import golden_yaml as specs
from build.spec.cluster import Role


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``publish``."""
    common.add_project(parser)
    common.add_cache(parser)
    common.add_artifact_option(parser)
    parser.add_argument(
        "--node", action="append", default=[], metavar="NAME", help="only on this node; can be given several times"
    )
    common.add_secrets(parser)
    parser.add_argument(
        "--ssh", action="store_true", help="copy the image over SSH and import it by qm (for Proxmox VE before 8.4)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Publish an artifact to the cluster of golden.yaml, and print the templates."""
    project, cache = common.project_of(arguments), common.cache_of(arguments)
    over_ssh: bool = arguments.ssh
    spec = specs.load(project.spec)
    settings = cluster.settings_of(spec)
    nodes = cluster.nodes_of(settings, arguments.node)
    chosen = artifact.load(arguments.artifact.absolute()) if arguments.artifact else find.newest(project)
    with ExitStack() as stack:
        publisher, verifier = cluster.publishing(stack, cache, settings, arguments.secrets)
        judge = node_verify.NodeVerifier(
            api=verifier, settings=settings, spec=chosen.manifest.inputs.spec or {},
            disk_mib=chosen.manifest.image.virtual_mib, tests=project.image_tests,
            scratch=cache.root / "clones", logs=cache.root / "logs" / "publish",
        )  # fmt: skip
        templates = publish.publish(
            publish.Job(
                artifact=chosen, settings=settings, api=publisher, verifier=judge.verify, nodes=nodes,
                tokens={Role.PUBLISHER: publisher, Role.VERIFIER: verifier},
                media=lambda api: (
                    ssh_import.OverSsh(api, settings, ssh_import.Ssh()) if over_ssh else OverApi(api, settings)
                ),
                over_ssh=over_ssh, trust=Trust.of(spec.releases, project.root),
                book=LedgerFile(project.root / spec.releases.ledger),
            )
        )  # fmt: skip
    for template in templates:
        print(f"{template.node}/{template.vmid} {template.name}")
    return 0
