"""The URLs of the site."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path
from pages import views
from pages.forms import LoginForm

urlpatterns = [
    path("", views.index, name="index"),
    path("health", views.health, name="health"),
    path("upload", views.upload, name="upload"),
    path("upload/allowed", views.upload_allowed, name="upload-allowed"),
    path("login", LoginView.as_view(authentication_form=LoginForm, template_name="pages/login.html"), name="login"),
    path("logout", LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
]
