"""Static files whose names carry the hash of their content."""

from django.conf import settings
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage, StaticFilesStorage


class HashedStorage(ManifestStaticFilesStorage):
    """Keeps the list of names beside the code: the application reads it, the web server need not."""

    def __init__(self) -> None:
        super().__init__(manifest_storage=StaticFilesStorage(location=settings.BASE_DIR, base_url=None))
