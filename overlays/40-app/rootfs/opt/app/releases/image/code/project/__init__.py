"""The Django project: settings, URLs, and how requests are logged."""
