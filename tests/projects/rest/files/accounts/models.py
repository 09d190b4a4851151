from django.contrib.auth.models import AbstractUser


class User(AbstractUser):
    """As Django recommends it for every new project."""
