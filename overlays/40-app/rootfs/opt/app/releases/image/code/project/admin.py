"""The administration, for staff who have shown a one-time code."""

from django.contrib.admin import AdminSite
from django.contrib.admin.apps import AdminConfig
from django.http import HttpRequest


class SiteAdminConfig(AdminConfig):
    """Replaces Django's site with the one below."""

    default_site = "project.admin.VerifiedAdminSite"


class VerifiedAdminSite(AdminSite):
    """Requires a password and a one-time code (requirement R98)."""

    login_template = "pages/login.html"

    @property
    def login_form(self) -> type:
        """The form with the code; imported late, because accounts are not ready while sites are created."""
        from pages.forms import StaffLoginForm  # noqa: PLC0415

        return StaffLoginForm

    def has_permission(self, request: HttpRequest) -> bool:
        """Return True if the user is staff, and verified in this session."""
        return super().has_permission(request) and request.user.is_verified()
