import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django_application = get_asgi_application()

from shop.consumers import Echo  # noqa: E402

application = ProtocolTypeRouter({"http": django_application, "websocket": URLRouter([path("ws/echo/", Echo.as_asgi())])})
