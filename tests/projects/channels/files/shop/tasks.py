from celery import shared_task


@shared_task
def fulfil(title):
    from shop.models import Order

    Order.objects.create(title=title)
