import django.db.models.deletion
import django.utils.timezone
import mirror_saas.ids
import tenants.context
from django.db import migrations, models

from tenants.tenant_tables import tenant_wall, tenant_wall_read_only


class Migration(migrations.Migration):

    dependencies = [
        ('tenants', '0006_sessions_begin_anew'),
    ]

    operations = [
        migrations.AddField(
            model_name='apikey',
            name='requests_per_minute',
            field=models.IntegerField(blank=True, null=True),
        ),
        migrations.CreateModel(
            name='LimitRefusal',
            fields=[
                ('id', models.UUIDField(default=mirror_saas.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('day', models.DateField()),
                ('kind', models.CharField(max_length=16)),
                ('count', models.BigIntegerField(default=0)),
                ('tenant', models.ForeignKey(db_constraint=False, db_index=False, default=tenants.context.tenant_id_default, editable=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='tenants.tenant')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('tenant', 'id'), name='limitrefusal_tenant_id'), models.UniqueConstraint(fields=('tenant', 'day', 'kind'), name='limitrefusal_tenant_day_kind')],
            },
        ),
        tenant_wall('tenants_limitrefusal'),
        migrations.CreateModel(
            name='TenantLimits',
            fields=[
                ('id', models.UUIDField(default=mirror_saas.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('calls', models.IntegerField(blank=True, null=True)),
                ('judge_calls', models.IntegerField(blank=True, null=True)),
                ('requests_per_minute', models.IntegerField(blank=True, null=True)),
                ('key_requests_per_minute', models.IntegerField(blank=True, null=True)),
                ('storage_mib', models.IntegerField(blank=True, null=True)),
                ('updated_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('tenant', models.ForeignKey(db_constraint=False, db_index=False, default=tenants.context.tenant_id_default, editable=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='tenants.tenant')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('tenant', 'id'), name='tenantlimits_tenant_id'), models.UniqueConstraint(fields=('tenant',), name='tenantlimits_tenant'), models.CheckConstraint(condition=models.Q(('calls__gte', -1), ('judge_calls__gte', -1), ('requests_per_minute__gte', -1), ('key_requests_per_minute__gte', -1), ('storage_mib__gte', -1)), name='tenantlimits_not_negative')],
            },
        ),
        *tenant_wall_read_only('tenants_tenantlimits'),
        migrations.CreateModel(
            name='TenantUse',
            fields=[
                ('id', models.UUIDField(default=mirror_saas.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('storage_bytes', models.BigIntegerField(db_default=0, default=0)),
                ('tenant', models.ForeignKey(db_constraint=False, db_index=False, default=tenants.context.tenant_id_default, editable=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='tenants.tenant')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('tenant', 'id'), name='tenantuse_tenant_id'), models.UniqueConstraint(fields=('tenant',), name='tenantuse_tenant')],
            },
        ),
        tenant_wall('tenants_tenantuse'),
    ]
