import django.db.models.deletion
import mirror_saas.ids
import tenants.context
from django.db import migrations, models

from tenants.tenant_tables import tenant_wall


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0035_alarms'),
    ]

    operations = [
        migrations.CreateModel(
            name='JudgeLatencyDay',
            fields=[
                ('id', models.UUIDField(default=mirror_saas.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('day', models.DateField()),
                ('counts', models.JSONField(db_default=models.Value({}, models.JSONField()), default=dict)),
                ('tenant', models.ForeignKey(db_constraint=False, db_index=False, default=tenants.context.tenant_id_default, editable=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='tenants.tenant')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('tenant', 'id'), name='judgelatencyday_tenant_id'), models.UniqueConstraint(fields=('tenant', 'day'), name='judgelatencyday_tenant_day')],
            },
        ),
        tenant_wall('supervision_judgelatencyday'),
    ]
