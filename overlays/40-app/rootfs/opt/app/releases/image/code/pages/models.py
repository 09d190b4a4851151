"""What the database keeps."""

from django.db import models


class Page(models.Model):
    """A page: its address, title and text."""

    slug = models.SlugField(unique=True)
    title = models.CharField(max_length=200)
    text = models.TextField()

    def __str__(self) -> str:
        return self.title
