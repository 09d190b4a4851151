"""The WSGI application for gunicorn."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from project.logs import mark_records

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
mark_records()
application = get_wsgi_application()
# An empty key raises here: the service fails at its start, and not at the first request that needs the key.
settings.SECRET_KEY  # noqa: B018
