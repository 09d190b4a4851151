from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularYAMLAPIView
from rest_framework.routers import DefaultRouter

from api.views import ItemViewSet, whoami

router = DefaultRouter()
router.register("items", ItemViewSet)

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/openapi.yaml", SpectacularYAMLAPIView.as_view(), name="schema"),
    path("api/whoami", whoami),
    path("api/", include(router.urls)),
]
