from django.db import migrations

from tenants.tenant_tables import platform_function


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('tenants', '0001_initial'),
    ]

    operations = [
        migrations.RunSQL(
            'GRANT SELECT (role) ON tenants_membership TO mirror_platform',
            'REVOKE SELECT (role) ON tenants_membership FROM mirror_platform',
        ),
        # Asked by every process with console sockets, for the people of all tenants that look on at once.
        platform_function(
            'memberships_standing',
            'membership_ids uuid[], roles text[]',
            'SETOF uuid',
            'SELECT m.id FROM unnest($1, $2) AS asked(id, role)'
            ' JOIN public.tenants_membership m ON m.id = asked.id AND m.role = asked.role',
        ),
    ]
