"""What the administration shows."""

from django.contrib import admin
from django.http import HttpRequest

from pages.models import Page, Upload


@admin.register(Page)
class PageAdmin(admin.ModelAdmin):
    """Pages are written here."""

    list_display = ("title", "slug")


@admin.register(Upload)
class UploadAdmin(admin.ModelAdmin):
    """Uploads can be looked at and removed; they are made by sending a file."""

    list_display = ("original", "name", "size", "owner", "created")
    readonly_fields = ("original", "name", "size", "sha256", "owner", "created")

    def has_add_permission(self, _request: HttpRequest) -> bool:
        """Nobody adds one here."""
        return False
