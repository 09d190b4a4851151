from django.contrib import admin

from api.models import Item

admin.site.register(Item)
