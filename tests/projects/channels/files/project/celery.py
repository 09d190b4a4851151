import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
app = Celery("project", broker="sqla+postgresql+psycopg://app@/app?host=/run/postgresql")
app.autodiscover_tasks()
