from django.contrib import admin

from gallery.models import Picture

admin.site.register(Picture)
