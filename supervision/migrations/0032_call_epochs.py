from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0031_approvals'),
    ]

    operations = [
        migrations.AddField(
            model_name='call',
            name='epoch',
            field=models.IntegerField(db_default=1, default=1),
        ),
        migrations.AddField(
            model_name='call',
            name='epoch_after_seq',
            field=models.BigIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='call',
            name='epoch_at',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddIndex(
            model_name='call',
            index=models.Index(fields=['tenant', 'plivo_call_id'], name='call_tenant_plivo_call'),
        ),
    ]
