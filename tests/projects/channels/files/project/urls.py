from django.contrib import admin
from django.urls import path

from shop.views import done, order

urlpatterns = [path("admin/", admin.site.urls), path("order", order), path("done", done)]
