"""The application's entry in Django's registry."""

from django.apps import AppConfig


class PagesConfig(AppConfig):
    """Pages, uploads and the health check."""

    name = "pages"

    def ready(self) -> None:
        """Connect the actions at a login."""
        from pages import logins  # noqa: F401, PLC0415
