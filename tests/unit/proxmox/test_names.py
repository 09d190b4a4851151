"""Every command distinguishes the templates of two products whose names begin alike."""

from __future__ import annotations

from typing import Any

import pytest

from build.clone import template
from build.core import git
from build.core.errors import SpecError
from build.drift import drift
from build.proxmox import labels
from build.release import channels


def guest(name: str, **keys: Any) -> dict[str, Any]:
    return {"vmid": 9000, "node": "pve1", "type": "qemu", "template": 1, "name": name, "tags": labels.PRODUCT_TAG, **keys}


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("golden-1.4.0", "golden"), ("golden-1.4.0-rc1", "golden"), ("golden-web-1.4.0", "golden-web"),
        ("golden-web-1.4.0-rc1", "golden-web"), ("golden-2-1.4.0", "golden-2"), ("golden-1.4", ""), ("golden", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_product_is_the_name_without_the_version(name: str, product: str) -> None:
    assert labels.product_of(name) == product


@pytest.mark.parametrize(("product", "own", "other"), [
    ("golden", "golden-1.4.0", "golden-web-1.4.0"), ("golden-web", "golden-web-1.4.0", "golden-1.4.0"),
])  # fmt: skip
def test_a_template_belongs_to_one_product(product: str, own: str, other: str) -> None:
    guests = [guest(own), guest(other)]
    assert [found["name"] for found in template.templates(guests, product)] == [own]
    assert [found["name"] for found in guests if channels._is_template(found, product)] == [own]
    assert [found["name"] for found in guests if drift._ours(found, product)] == [own]


def test_drift_sees_a_template_that_lost_its_tag_or_its_name() -> None:
    assert drift._ours(guest("golden-web-1.4.0", tags=""), "golden-web")
    assert not drift._ours(guest("golden-web-1.4.0", tags=""), "golden")
    assert drift._ours(guest("renamed", template=0), "golden")


@pytest.mark.parametrize(("tag", "version"), [("v1.4.0", "1.4.0"), ("golden-web-v1.4.0-rc1", "1.4.0-rc1")])
def test_a_release_tag_may_name_the_profile(tag: str, version: str) -> None:
    assert git.version_of(tag, "golden-web") == version


def test_a_release_tag_of_another_profile_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'golden-v1\.4\.0' is not a release tag of golden-web"):
        git.version_of("golden-v1.4.0", "golden-web")
