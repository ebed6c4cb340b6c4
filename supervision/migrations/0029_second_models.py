import django.db.models.deletion
from django.db import migrations, models

from tenants.tenant_tables import tenant_foreign_key


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0028_agent_failures'),
        ('tenants', '0020_idempotency_keys'),
    ]

    operations = [
        migrations.AddField(
            model_name='policyversion',
            name='fallback_credential',
            field=models.ForeignKey(blank=True, db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='fallback_versions', to='supervision.providercredential'),
        ),
        migrations.AddField(
            model_name='tooldecision',
            name='fallback',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name='tooldecision',
            name='model',
            field=models.CharField(blank=True, db_default='', default='', max_length=200),
        ),
        migrations.AddField(
            model_name='verdict',
            name='fallback',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name='verdict',
            name='model',
            field=models.CharField(blank=True, db_default='', default='', max_length=200),
        ),
        migrations.AddIndex(
            model_name='policyversion',
            index=models.Index(fields=['tenant', 'fallback_credential'], name='policyversion_tenant_fallback'),
        ),
        tenant_foreign_key('supervision_policyversion', 'fallback_credential_id', 'supervision_providercredential', on_delete='NO ACTION'),
    ]
