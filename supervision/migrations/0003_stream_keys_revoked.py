from django.db import migrations

from tenants.tenant_tables import platform_function


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0002_plivo_credentials'),
        ('tenants', '0001_initial'),
    ]

    operations = [
        # A column's policy exists since 0001; this is one more column of the same rows.
        migrations.RunSQL(
            'GRANT SELECT (id) ON supervision_streamkey TO mirror_platform',
            'REVOKE SELECT (id) ON supervision_streamkey FROM mirror_platform',
        ),
        # Asked by every process that carries calls, for all their keys at once. A key that is gone went with its tenant.
        platform_function(
            'stream_keys_revoked',
            'key_ids uuid[]',
            'SETOF uuid',
            'SELECT asked.id FROM unnest($1) AS asked(id)'
            ' WHERE NOT EXISTS (SELECT 1 FROM public.supervision_streamkey k'
            ' WHERE k.id = asked.id AND k.revoked_at IS NULL)',
        ),
    ]
