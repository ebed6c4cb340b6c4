from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0027_model_defaults'),
        ('tenants', '0020_idempotency_keys'),
    ]

    operations = [
        migrations.AddField(
            model_name='agent',
            name='redials',
            field=models.PositiveSmallIntegerField(db_default=2, default=2),
        ),
        migrations.AddField(
            model_name='agent',
            name='failure_message',
            field=models.CharField(blank=True, db_default='', default='', max_length=300),
        ),
        migrations.AddField(
            model_name='agent',
            name='on_failure',
            field=models.CharField(choices=[('close', "The stream is closed, and the call's XML goes on behind it"), ('hangup', 'The call is hung up'), ('transfer', 'The call goes on with other XML')], db_default='close', default='close', max_length=8),
        ),
        migrations.AddField(
            model_name='agent',
            name='failure_transfer_url',
            field=models.CharField(blank=True, db_default='', default='', max_length=2000),
        ),
        migrations.AddField(
            model_name='agent',
            name='bidirectional',
            field=models.BooleanField(db_default=True, default=True),
        ),
        migrations.AddConstraint(
            model_name='agent',
            constraint=models.CheckConstraint(condition=models.Q(('on_failure__in', ['close', 'hangup', 'transfer'])), name='agent_on_failure'),
        ),
        migrations.AddConstraint(
            model_name='agent',
            constraint=models.CheckConstraint(condition=models.Q(('redials__lte', 5)), name='agent_redials'),
        ),
    ]
