"""The index page and the health check."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from pages.deadline import DeadlineExceeded, deadline
from pages.models import Page

logger = logging.getLogger("app.health")
# Seconds. The answer of /health must be there within 3 s, whatever the database does.
HEALTH_DEADLINE = 2.0


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """Show the page that the database keeps."""
    page = get_object_or_404(Page, slug="index")
    return render(request, "pages/index.html", {"page": page, "site_name": settings.SITE_NAME})


@require_safe
def health(_request: HttpRequest) -> JsonResponse:
    """Say whether the database answers: 200 and {"db": "ok"}, or 503 and {"db": "down"}."""
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
