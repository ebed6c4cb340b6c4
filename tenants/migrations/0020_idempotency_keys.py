import django.utils.timezone
import mirror_saas.ids
import tenants.context
import django.db.models.deletion
from django.db import migrations, models

from tenants.tenant_tables import tenant_wall


class Migration(migrations.Migration):

    dependencies = [
        ('tenants', '0007_limits'),
    ]

    operations = [
        migrations.CreateModel(
            name='IdempotencyKey',
            fields=[
                ('id', models.UUIDField(default=mirror_saas.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('actor_id', models.UUIDField()),
                ('key', models.CharField(max_length=255)),
                ('fingerprint', models.BinaryField(max_length=32)),
                ('status', models.SmallIntegerField()),
                ('answer_sealed', models.BinaryField()),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('tenant', models.ForeignKey(db_constraint=False, db_index=False, default=tenants.context.tenant_id_default, editable=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='tenants.tenant')),
            ],
            options={
                'indexes': [models.Index(fields=['tenant', 'created_at'], name='idempotencykey_tenant_created')],
                'constraints': [models.UniqueConstraint(fields=('tenant', 'id'), name='idempotencykey_tenant_id'), models.UniqueConstraint(fields=('tenant', 'actor_id', 'key'), name='idempotencykey_tenant_key')],
            },
        ),
        tenant_wall('tenants_idempotencykey'),
    ]
