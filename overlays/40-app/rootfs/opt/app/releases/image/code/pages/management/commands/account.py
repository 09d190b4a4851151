"""``manage.py account NAME``: create an account, or give it a new password and a new device. Answers as JSON."""

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django_otp.plugins.otp_totp.models import TOTPDevice


class Command(BaseCommand):
    """Reads the password from standard input, and prints the address for the one-time code application."""

    help = "Make an account with a password (read from standard input) and a device for one-time codes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("name")
        parser.add_argument("--administrator", action="store_true", help="may use the administration, and do everything")
        parser.add_argument("--disable", action="store_true", help="close the account; nothing is read")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Create or close the account, in one transaction."""
        with transaction.atomic():
            answer = self._disable(options["name"]) if options["disable"] else self._make(options)
        self.stdout.write(json.dumps(answer))

    def _disable(self, name: str) -> dict[str, Any]:
        if not get_user_model().objects.filter(username=name).update(is_active=False):
            raise CommandError(f"there is no account {name}")
        return {"name": name, "active": False}

    def _make(self, options: dict[str, Any]) -> dict[str, Any]:
        users = get_user_model()
        name = options["name"]
        user = users.objects.filter(username=name).first() or users(username=name)
        password = sys.stdin.readline().rstrip("\n")
        try:
            user.clean_fields(exclude=["password"])
            validate_password(password, user)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        user.set_password(password)
        user.is_active = True
        user.is_staff = user.is_superuser = bool(options["administrator"])
        user.save()
        TOTPDevice.objects.filter(user=user).delete()
        device = TOTPDevice.objects.create(user=user, name="golden-app", confirmed=True)
        return {"name": name, "active": True, "administrator": user.is_superuser, "otpauth": device.config_url}
