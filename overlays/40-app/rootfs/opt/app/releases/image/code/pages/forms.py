"""Logging in: a name, a password and a one-time code, all at once.

A failed login does not report which of the three was wrong.
"""

import logging
from typing import Any

from django import forms
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.forms import AuthenticationForm
from django.db import transaction
from django_otp.plugins.otp_totp.models import TOTPDevice

from pages.logins import address

logger = logging.getLogger("app.login")
REFUSED = "Name, password and one-time code do not belong together, or the code was used already."


class LoginForm(AuthenticationForm):
    """Admits a user whose confirmed device accepts the code; django-otp throttles guesses."""

    token = forms.CharField(
        label="One-time code",
        max_length=8,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "inputmode": "numeric"}),
    )
    error_messages = AuthenticationForm.error_messages | {"invalid_login": REFUSED}

    def clean(self) -> dict[str, Any]:
        """Check password and code."""
        cleaned = super().clean()
        user = self.get_user()
        if user is None:
            return cleaned
        token = cleaned.get("token")
        user.otp_device = _verified_device(user, token) if token else None
        if user.otp_device is None:
            logger.warning("one-time code refused", extra={"fields": {"ip": address(self.request), "user": user.pk}})
            raise self.get_invalid_login_error()
        return cleaned


class StaffLoginForm(LoginForm, AdminAuthenticationForm):
    """The same for the administration, which requires staff."""


def _verified_device(user: Any, token: str) -> TOTPDevice | None:
    """Return the device that accepts the code, each checked under a lock: a code is valid once."""
    with transaction.atomic():
        for device in TOTPDevice.objects.select_for_update().filter(user=user, confirmed=True):
            if device.verify_token(token):
                return device
    return None
