from django.db import migrations


class Migration(migrations.Migration):
    """Sessions of before they were listed are in nobody's list, so nobody could end them: all begin anew."""

    dependencies = [
        ('tenants', '0005_api_keys'),
        ('sessions', '0001_initial'),
        ('usersessions', '0001_initial'),
    ]

    operations = [
        migrations.RunSQL('DELETE FROM django_session', reverse_sql=migrations.RunSQL.noop),
    ]
