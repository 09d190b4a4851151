"""server_names of site.yaml: what the web server is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from golden.site_table import Key
from golden.site_values import host_name

ABOUT = "Names that the web server answers to, besides those of the image and of the host. The first is the main name."


def files(names: Sequence[str]) -> Mapping[str, bytes]:
    """Return the names for golden-names.service, which is a shell script."""
    return {"site-names": f"{' '.join(names)}\n".encode()}


KEY = Key(lambda site, key: site.items(key, host_name, about=ABOUT), files, from_hypervisor=True)
