"""Static files with the hash of their content in the name, and the digests that browsers compare them with."""

import base64
import hashlib
import json

from django.conf import settings
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage, StaticFilesStorage
from django.core.files.base import ContentFile

INTEGRITY = "integrity.json"


def digest_of(content: bytes) -> str:
    """Return the digest of a file as a browser compares it."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


class HashedStorage(ManifestStaticFilesStorage):
    """Keeps the list of names, and the digests, next to the code: only the application reads them."""

    def __init__(self) -> None:
        super().__init__(manifest_storage=StaticFilesStorage(location=settings.BASE_DIR, base_url=None))

    def save_manifest(self) -> None:
        """Save the names, and the digest of every script and style sheet."""
        # Django keeps the order in which the file system lists the files, which differs between ext4 and tmpfs.
        self.hashed_files = dict(sorted(self.hashed_files.items()))
        super().save_manifest()
        names = sorted({name for name in self.hashed_files.values() if name.endswith((".css", ".js"))})
        digests = {}
        for name in names:
            with self.open(name) as stream:
                digests[self.base_url + name] = digest_of(stream.read())
        self.manifest_storage.delete(INTEGRITY)
        self.manifest_storage.save(INTEGRITY, ContentFile(json.dumps(digests, indent=0).encode()))
