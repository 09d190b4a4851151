"""Middleware: the client's address, and a response for the health check of a project that has none."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import sync_and_async_middleware

HEALTH = "/health"
# Status codes of a project without a page of this name: an error, or a redirect to its login or to another name.
NO_PAGE = (301, 302, 303, 307, 308, 401, 403, 404, 405)


@sync_and_async_middleware
def surroundings(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Return the middleware, for requests of WSGI and of ASGI."""
    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponse:
            take_address(request)
            response = await get_response(request)
            return await sync_to_async(health)() if asks_health(request, response) else response

        return answer_async

    def answer(request: HttpRequest) -> HttpResponse:
        take_address(request)
        response = get_response(request)
        return health() if asks_health(request, response) else response

    return answer


def take_address(request: HttpRequest) -> None:
    """Set the client's address in the request: the peer of the socket is the web server, which sends it in a header."""
    try:
        request.META["REMOTE_ADDR"] = str(ipaddress.ip_address(request.headers.get("X-Forwarded-For", "")))
    except ValueError:
        request.META["REMOTE_ADDR"] = ""


def asks_health(request: HttpRequest, response: HttpResponse) -> bool:
    """Return True if the health check was asked for and the project has no page of its name."""
    return request.path == HEALTH and response.status_code in NO_PAGE


def health() -> JsonResponse:
    """Return 200 when the database answers, else 503."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return JsonResponse({"db": type(error).__name__}, status=503)
    return JsonResponse({"db": "ok"})
