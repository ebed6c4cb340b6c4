import django.db.models.deletion
import mirror_saas.ids
import tenants.context
from django.db import migrations, models

from tenants.tenant_tables import tenant_wall_append_only


class Migration(migrations.Migration):

    dependencies = [
        ('tenants', '0002_data_keys'),
    ]

    operations = [
        migrations.CreateModel(
            name='AuditEvent',
            fields=[
                ('id', models.UUIDField(default=mirror_saas.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('seq', models.BigIntegerField()),
                ('at', models.DateTimeField()),
                ('actor_kind', models.CharField(max_length=16)),
                ('actor_id', models.UUIDField(null=True)),
                ('actor_label', models.CharField(max_length=300)),
                ('action', models.CharField(max_length=64)),
                ('object_type', models.CharField(max_length=32)),
                ('object_id', models.CharField(max_length=64)),
                ('object_label', models.CharField(max_length=300)),
                ('before', models.TextField(null=True)),
                ('after', models.TextField(null=True)),
                ('ip', models.CharField(max_length=64)),
                ('user_agent', models.CharField(max_length=300)),
                ('session', models.CharField(max_length=16)),
                ('request_id', models.CharField(max_length=36)),
                ('prev_hash', models.BinaryField(max_length=32)),
                ('hash', models.BinaryField(max_length=32)),
                ('tenant', models.ForeignKey(db_constraint=False, db_index=False, default=tenants.context.tenant_id_default, editable=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='tenants.tenant')),
            ],
            options={
                'indexes': [models.Index(fields=['tenant', 'object_type', 'object_id', 'seq'], name='auditevent_tenant_object'), models.Index(fields=['tenant', 'actor_id', 'seq'], name='auditevent_tenant_actor')],
                'constraints': [models.UniqueConstraint(fields=('tenant', 'id'), name='auditevent_tenant_id'), models.UniqueConstraint(fields=('tenant', 'seq'), name='auditevent_tenant_seq')],
            },
        ),
        *tenant_wall_append_only('tenants_auditevent'),
    ]
