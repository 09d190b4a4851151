"""Every script and style sheet in a page has the digest of the file that the browser must get (requirement R74).

This is done in the response and not in the templates, because the administration's templates are Django's.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from project.static import INTEGRITY

TAG = re.compile(rb"<(?:script|link)\b[^>]*>")
ADDRESS = re.compile(rb'\b(?:src|href)="([^"]+)"')


def read_digests() -> dict[bytes, bytes]:
    """Return the digest of each static file's address; nothing before the files were collected."""
    path = Path(settings.BASE_DIR, INTEGRITY)
    known = json.loads(path.read_text()) if path.is_file() else {}
    return {address.encode(): digest.encode() for address, digest in known.items()}


class SubresourceIntegrity:
    """Adds ``integrity`` to the tags of HTML answers."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.digests = read_digests()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request."""
        response = self.get_response(request)
        if not response.streaming and response.headers.get("Content-Type", "").startswith("text/html"):
            response.content = TAG.sub(self._with_digest, response.content)
        return response

    def _with_digest(self, tag: re.Match[bytes]) -> bytes:
        text = tag.group()
        address = ADDRESS.search(text)
        digest = self.digests.get(address.group(1)) if address else None
        if digest is None or b"integrity=" in text:
            return text
        end = b"/>" if text.endswith(b"/>") else b">"
        return text.removesuffix(end).rstrip() + b' integrity="' + digest + b'"' + end
