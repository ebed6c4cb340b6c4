import django.db.models.deletion
import mirror_saas.ids
import tenants.context
from django.db import migrations, models

from tenants.tenant_tables import tenant_foreign_key, tenant_wall

# What the review queue takes up: scores that reach their threshold or come close, and a sample. The queue asks in the
# same words (supervision.selectors.reviews), or PostgreSQL would not know these indexes again.
NEAR = "state = 'judged' AND score >= (threshold - 0.2)"
SAMPLED = "NOT late AND get_byte(uuid_send(id), 15) < 5"


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0033_test_calls'),
        ('tenants', '0020_idempotency_keys'),
    ]

    operations = [
        migrations.AddField(
            model_name='label',
            name='tool_decision',
            field=models.ForeignKey(blank=True, db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='labels', to='supervision.tooldecision'),
        ),
        migrations.RemoveConstraint(
            model_name='label',
            name='label_of_one_thing',
        ),
        migrations.AddConstraint(
            model_name='label',
            constraint=models.UniqueConstraint(condition=models.Q(('tool_decision__isnull', False)), fields=('tenant', 'tool_decision'), name='label_tenant_tool_decision'),
        ),
        migrations.AddConstraint(
            model_name='label',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('intervention__isnull', True), ('tool_decision__isnull', True), ('turn__isnull', False)), models.Q(('intervention__isnull', False), ('tool_decision__isnull', True), ('turn__isnull', True)), models.Q(('intervention__isnull', True), ('tool_decision__isnull', False), ('turn__isnull', True)), _connector='OR'), name='label_of_one_thing'),
        ),
        migrations.AddIndex(
            model_name='label',
            index=models.Index(fields=['tenant', '-updated_at'], name='label_tenant_newest'),
        ),
        tenant_foreign_key('supervision_label', 'tool_decision_id', 'supervision_tooldecision', on_delete='CASCADE'),
        migrations.CreateModel(
            name='ReviewReservation',
            fields=[
                ('id', models.UUIDField(default=mirror_saas.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('item_id', models.UUIDField()),
                ('reviewer_id', models.UUIDField()),
                ('reviewer', models.CharField(max_length=300)),
                ('expires_at', models.DateTimeField()),
                ('call', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='review_reservations', to='supervision.call')),
                ('tenant', models.ForeignKey(db_constraint=False, db_index=False, default=tenants.context.tenant_id_default, editable=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='tenants.tenant')),
            ],
            options={
                'indexes': [models.Index(fields=['tenant', 'reviewer_id'], name='reviewreservation_tenant_who'), models.Index(fields=['tenant', 'call'], name='reviewreservation_tenant_call')],
                'constraints': [models.UniqueConstraint(fields=('tenant', 'id'), name='reviewreservation_tenant_id'), models.UniqueConstraint(fields=('tenant', 'item_id'), name='reviewreservation_one_reviewer')],
            },
        ),
        tenant_wall('supervision_reviewreservation'),
        tenant_foreign_key('supervision_reviewreservation', 'call_id', 'supervision_call', on_delete='CASCADE'),
        migrations.RunSQL(
            f"CREATE INDEX verdict_tenant_near ON supervision_verdict (tenant_id, id DESC) WHERE {NEAR}",
            reverse_sql="DROP INDEX verdict_tenant_near",
        ),
        migrations.RunSQL(
            f"CREATE INDEX verdict_tenant_sampled ON supervision_verdict (tenant_id, id DESC) WHERE {SAMPLED}",
            reverse_sql="DROP INDEX verdict_tenant_sampled",
        ),
    ]
