"""The tables of the database."""

from functools import partial

from django.conf import settings
from django.db import models, transaction
from django.db.models.signals import post_delete
from django.dispatch import receiver

from pages import uploads


class Page(models.Model):
    """A page: its address, title and text."""

    slug = models.SlugField(unique=True)
    title = models.CharField(max_length=200)
    text = models.TextField()

    def __str__(self) -> str:
        return self.title


class Upload(models.Model):
    """An uploaded file: the name it is stored under, and its properties."""

    name = models.CharField(max_length=40, unique=True)
    original = models.CharField(max_length=200)
    size = models.PositiveIntegerField()
    sha256 = models.CharField(max_length=64)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        """The newest first."""

        ordering = ("-created",)

    def __str__(self) -> str:
        return self.original


@receiver(post_delete, sender=Upload)
def remove_file(instance: Upload, **_kwargs: object) -> None:
    """Remove the file of a deleted row, once the deletion is committed."""
    transaction.on_commit(partial(uploads.remove, instance.name))
