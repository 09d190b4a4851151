from django.contrib import admin
from django.urls import path

from gallery.views import compiled

urlpatterns = [path("admin/", admin.site.urls), path("compiled", compiled)]
