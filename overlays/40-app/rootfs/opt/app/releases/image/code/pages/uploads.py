"""Uploads: read into memory up to a limit, and written to the disk completely or not at all."""

import errno
import os
from io import BytesIO
from pathlib import Path
from uuid import uuid4

from django.conf import settings
from django.core.files.uploadedfile import InMemoryUploadedFile
from django.core.files.uploadhandler import FileUploadHandler, StopUpload

# The group www-data, inherited from the directory, is that of the web server.
FILE_MODE = 0o640
FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(Exception):
    """The disk is full."""


class BoundedMemory(FileUploadHandler):
    """Holds an upload in memory: no temporary file can be left behind. Aborts it when it is too large."""

    def new_file(self, *args: object, **kwargs: object) -> None:
        """Begin a file."""
        super().new_file(*args, **kwargs)
        self.stream = BytesIO()

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        """Store a chunk of it."""
        if start + len(raw_data) > settings.UPLOAD_MAX_BYTES:
            self.request.upload_too_large = True
            raise StopUpload(connection_reset=True)
        self.stream.write(raw_data)

    def file_complete(self, file_size: int) -> InMemoryUploadedFile:
        """Return the complete file."""
        self.stream.seek(0)
        return InMemoryUploadedFile(
            file=self.stream, field_name=self.field_name, name=self.file_name, content_type=self.content_type,
            size=file_size, charset=self.charset, content_type_extra=self.content_type_extra,
        )  # fmt: skip


def store(content: bytes, suffix: str) -> str:
    """Write a file under a name that cannot be guessed, and return the name.

    The incomplete file of a killed process has a name that starts with ``.incoming-`` and the process ID: the web server
    serves no hidden names, and gunicorn.conf.py removes the file. Raises NoRoom when the disk is full.
    """
    root = Path(settings.MEDIA_ROOT)
    name = uuid4().hex + suffix
    part = root / f".incoming-{os.getpid()}-{name}"
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as stream:
            # The unit's umask has removed the rights of the group.
            os.fchmod(stream.fileno(), FILE_MODE)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(root / name)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in FULL:
            raise NoRoom from error
        raise
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return name


def remove(name: str) -> None:
    """Remove a stored file."""
    Path(settings.MEDIA_ROOT, name).unlink(missing_ok=True)
