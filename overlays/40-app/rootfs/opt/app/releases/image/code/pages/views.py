"""The index page, uploads, and the health check."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe
from django_otp.decorators import otp_required

from pages import uploads
from pages.deadline import DeadlineExceeded, deadline
from pages.kinds import accept
from pages.models import Page, Upload

logger = logging.getLogger("app.health")
upload_logger = logging.getLogger("app.upload")
# Seconds. The answer of /health must be there within 3 s, whatever the database does.
HEALTH_DEADLINE = 2.0
SHOWN_UPLOADS = 20


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """Show the page from the database."""
    page = get_object_or_404(Page, slug="index")
    return render(request, "pages/index.html", {"page": page, "site_name": settings.SITE_NAME})


@never_cache
@otp_required
@require_http_methods(["GET", "HEAD", "POST"])
def upload(request: HttpRequest) -> HttpResponse:
    """Show the user's uploads, and accept a new one."""
    status, message = _take(request) if request.method == "POST" else (200, "")
    shown = Upload.objects.filter(owner=request.user)[:SHOWN_UPLOADS]
    context = {"site_name": settings.SITE_NAME, "message": message, "uploads": shown, "media": settings.MEDIA_URL}
    return render(request, "pages/upload.html", context, status=status)


@never_cache
@require_safe
def upload_allowed(request: HttpRequest) -> HttpResponse:
    """Return 204 if the sender of a request may upload, otherwise 401. The web server asks before it reads the file."""
    return HttpResponse(status=204 if request.user.is_verified() else 401)


def _take(request: HttpRequest) -> tuple[int, str]:
    """Store the file of the request; return the status and the message for the sender."""
    sent = request.FILES.get("file")
    if getattr(request, "upload_too_large", False):
        return 413, f"The file is larger than {settings.UPLOAD_MAX_BYTES >> 20} MiB."
    if sent is None or not sent.name:
        return 400, "Choose a file."
    content = sent.read()
    kind = accept(sent.name, content)
    if kind is None:
        return 415, "Only PNG, JPEG, PDF and plain text are taken, each under its own suffix."
    try:
        name = uploads.store(content, kind.suffix)
    except uploads.NoRoom:
        upload_logger.exception("the disk is full")
        return 507, "There is no room for the file at the moment."
    try:
        Upload.objects.create(
            name=name, original=sent.name[:200], size=len(content), sha256=hashlib.sha256(content).hexdigest(),
            owner=request.user,
        )  # fmt: skip
    except BaseException:
        uploads.remove(name)
        raise
    upload_logger.info("stored", extra={"fields": {"name": name, "bytes": len(content), "user": request.user.pk}})
    return 201, "Stored."


@require_safe
def health(_request: HttpRequest) -> JsonResponse:
    """Return 200 and {"db": "ok"} if the database answers, otherwise 503 and {"db": "down"}."""
    try:
        with _fresh_after_failure(), deadline(HEALTH_DEADLINE), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    except (DatabaseError, DeadlineExceeded) as error:
        logger.warning("the database does not answer", extra={"fields": {"error": type(error).__name__}})
        return JsonResponse({"db": "down"}, status=503)
    return JsonResponse({"db": "ok"})


@contextmanager
def _fresh_after_failure() -> Iterator[None]:
    """Drop the connection when the block fails: after a deadline it may still wait for an old answer."""
    try:
        yield
    except BaseException:
        connection.close()
        raise
