from rest_framework import permissions, serializers, viewsets
from rest_framework.decorators import api_view, permission_classes
from rest_framework.response import Response

from api.models import Item


class ItemSerializer(serializers.ModelSerializer):
    class Meta:
        model = Item
        fields = ["id", "title"]


class ItemViewSet(viewsets.ModelViewSet):
    queryset = Item.objects.order_by("id")
    serializer_class = ItemSerializer
    permission_classes = [permissions.AllowAny]
    authentication_classes = []


@api_view()
@permission_classes([permissions.AllowAny])
def whoami(request):
    return Response({"address": request.META["REMOTE_ADDR"], "secure": request.is_secure()})
