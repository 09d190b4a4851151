"""Actions at a login: write a log line with the client's address, and remove expired sessions."""

import logging
from typing import Any

from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.contrib.sessions.models import Session
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone

logger = logging.getLogger("app.login")


def address(request: HttpRequest | None) -> str:
    """Return the client's address; a management command has none."""
    return request.META.get("REMOTE_ADDR", "") if request else ""


@receiver(user_login_failed)
def log_failure(request: HttpRequest | None = None, **_kwargs: Any) -> None:
    """Log that a password was refused; not the name, which may be a password that was typed into the wrong field."""
    logger.warning("login refused", extra={"fields": {"ip": address(request)}})


@receiver(user_logged_in)
def log_success(request: HttpRequest, user: Any, **_kwargs: Any) -> None:
    """Log who logged in, and remove expired sessions."""
    logger.info("login", extra={"fields": {"ip": address(request), "user": user.pk}})
    Session.objects.filter(expire_date__lt=timezone.now()).delete()
