"""``manage.py accounts``: every account, with its rights and its last login. Answers as JSON."""

import json
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django_otp.plugins.otp_totp.models import TOTPDevice


class Command(BaseCommand):
    """Lists the accounts for whoever reviews them."""

    help = "List the accounts."

    def handle(self, *_args: Any, **_options: Any) -> None:
        """Write the list."""
        holders = set(TOTPDevice.objects.filter(confirmed=True).values_list("user_id", flat=True))
        accounts = [
            {
                "name": user.get_username(), "active": user.is_active, "administrator": user.is_superuser,
                "staff": user.is_staff, "one_time_code": user.pk in holders,
                "last_login": user.last_login.isoformat() if user.last_login else None,
            }
            for user in get_user_model().objects.order_by("username")
        ]  # fmt: skip
        self.stdout.write(json.dumps(accounts))
