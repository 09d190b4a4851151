"""The application's entry in Django's registry."""

from django.apps import AppConfig


class PagesConfig(AppConfig):
    """Pages and the health check."""

    name = "pages"
