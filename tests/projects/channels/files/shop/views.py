from django.http import JsonResponse

from shop.models import Order
from shop.tasks import fulfil


def order(request):
    fulfil.delay(request.GET["title"])
    return JsonResponse({"queued": True})


def done(request):
    return JsonResponse({"orders": list(Order.objects.values_list("title", flat=True))})
