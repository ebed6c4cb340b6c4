import django.db.models.functions.datetime
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0004_storage_limit'),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name='policy',
            name='policy_tenant_name',
        ),
        migrations.RemoveConstraint(
            model_name='providercredential',
            name='providercredential_kind',
        ),
        migrations.AddField(
            model_name='agent',
            name='audio_format',
            field=models.CharField(db_default='audio/x-mulaw;rate=8000', default='audio/x-mulaw;rate=8000', max_length=32),
        ),
        migrations.AddField(
            model_name='agent',
            name='policy_overrides',
            field=models.JSONField(blank=True, db_default=models.Value({}, models.JSONField()), default=dict),
        ),
        migrations.AddField(
            model_name='agent',
            name='policy_track',
            field=models.CharField(choices=[('live', 'The live version'), ('shadow', 'The shadow version, while there is one')], db_default='live', default='live', max_length=8),
        ),
        migrations.AddField(
            model_name='policy',
            name='revision',
            field=models.IntegerField(db_default=1, default=1),
        ),
        migrations.AddField(
            model_name='policy',
            name='updated_at',
            field=models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), default=django.utils.timezone.now, editable=False),
        ),
        migrations.AddField(
            model_name='policyversion',
            name='note',
            field=models.TextField(blank=True, db_default='', default=''),
        ),
        migrations.AddField(
            model_name='policyversion',
            name='revision',
            field=models.IntegerField(db_default=1, default=1),
        ),
        migrations.AddField(
            model_name='policyversion',
            name='rolled_back_at',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='policyversion',
            name='updated_at',
            field=models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), default=django.utils.timezone.now, editable=False),
        ),
        migrations.AddField(
            model_name='providercredential',
            name='provider',
            field=models.CharField(blank=True, db_default='', default='', max_length=16),
        ),
        migrations.AlterField(
            model_name='providercredential',
            name='kind',
            field=models.CharField(choices=[('llm', 'Language model'), ('tts', 'Text to speech'), ('plivo', 'Plivo account'), ('forge', 'Forge')], max_length=8),
        ),
        migrations.AddConstraint(
            model_name='agent',
            constraint=models.CheckConstraint(condition=models.Q(('policy_track__in', ['live', 'shadow'])), name='agent_policy_track'),
        ),
        migrations.AddConstraint(
            model_name='policy',
            constraint=models.UniqueConstraint(condition=models.Q(('archived_at', None)), fields=('tenant', 'name'), name='policy_tenant_name'),
        ),
        migrations.AddConstraint(
            model_name='providercredential',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['llm', 'tts', 'plivo', 'forge'])), name='providercredential_kind'),
        ),
    ]
