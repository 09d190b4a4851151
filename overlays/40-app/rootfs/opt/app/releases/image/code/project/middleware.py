"""Middleware: a log line for every request, and the page for a database that is down or too many logins."""

import ipaddress
import logging
import re
import time
from collections.abc import Callable

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from project.hashing import NoPlace
from project.logs import request_id

logger = logging.getLogger("app.request")
# nginx's $request_id; other values do not come from nginx.
REQUEST_ID = re.compile(r"[0-9a-f]{32}")


def client_address(request: HttpRequest) -> str:
    """Return the client's address as the web server saw it, or nothing: a UNIX socket's peer has none."""
    given = request.headers.get("X-Forwarded-For", "")
    try:
        return str(ipaddress.ip_address(given))
    except ValueError:
        return ""


class RequestLog:
    """Logs each request with the ID that the web server gave it, and passes the client's address to the application."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request, and log it."""
        given = request.headers.get("X-Request-ID", "")
        request.META["REMOTE_ADDR"] = client_address(request)
        token = request_id.set(given if REQUEST_ID.fullmatch(given) else "-")
        started = time.monotonic()
        try:
            response = self.get_response(request)
            logger.info(
                "request",
                extra={
                    "fields": {
                        "method": request.method,
                        "path": request.path,
                        "status": response.status_code,
                        "ms": round((time.monotonic() - started) * 1000),
                    }
                },
            )
            return response
        finally:
            request_id.reset(token)


class DatabaseDown:
    """Answers 503 with a plain page when the database does not answer a page's query."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Return the page if the database is lost; leave every other exception to Django."""
        if not isinstance(exception, OperationalError | InterfaceError):
            return None
        logger.error("the database does not answer", extra={"fields": {"error": type(exception).__name__}})
        return render(request, "pages/unavailable.html", status=503)


class HashingBusy:
    """Answers 503 when the maximum number of workers is hashing passwords: the others answer the rest of the site."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Return the page if there is no place; leave every other exception to the other middleware."""
        if not isinstance(exception, NoPlace):
            return None
        logger.warning("too many log-ins at once", extra={"fields": {"ip": request.META["REMOTE_ADDR"]}})
        response = render(request, "pages/unavailable.html", status=503)
        response["Retry-After"] = "5"
        return response
