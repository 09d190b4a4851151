"""The table of pages, and the first page."""

from django.db import migrations, models


def write_first_page(apps, _schema_editor):
    """Create the first page of the site."""
    apps.get_model("pages", "Page").objects.create(
        slug="index",
        title="It works",
        text="This page came from the database.",
    )


class Migration(migrations.Migration):
    """From nothing to the first page."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Page",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("slug", models.SlugField(unique=True)),
                ("title", models.CharField(max_length=200)),
                ("text", models.TextField()),
            ],
        ),
        migrations.RunPython(write_first_page, migrations.RunPython.noop),
    )
