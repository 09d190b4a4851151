from django.db import models


class Item(models.Model):
    title = models.CharField(max_length=100)
    file = models.FileField(upload_to="items/%Y", blank=True)

    def __str__(self):
        return self.title
