"""The models in the administration."""

from django.contrib import admin
from django.http import HttpRequest

from pages.models import Page, Upload


@admin.register(Page)
class PageAdmin(admin.ModelAdmin):
    """Pages can be edited here."""

    list_display = ("title", "slug")


@admin.register(Upload)
class UploadAdmin(admin.ModelAdmin):
    """Uploads can be viewed and removed; they are created by sending a file."""

    list_display = ("original", "name", "size", "owner", "created")
    readonly_fields = ("original", "name", "size", "sha256", "owner", "created")

    def has_add_permission(self, _request: HttpRequest) -> bool:
        """Return False: uploads cannot be added here."""
        return False
