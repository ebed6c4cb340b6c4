from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0001_initial'),
        ('tenants', '0001_initial'),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name='providercredential',
            name='providercredential_kind',
        ),
        migrations.AddField(
            model_name='providercredential',
            name='account',
            field=models.CharField(blank=True, db_default='', default='', max_length=40),
        ),
        migrations.AlterField(
            model_name='providercredential',
            name='kind',
            field=models.CharField(choices=[('llm', 'Language model'), ('tts', 'Text to speech'), ('plivo', 'Plivo account')], max_length=8),
        ),
        migrations.AlterField(
            model_name='providercredential',
            name='model',
            field=models.CharField(blank=True, max_length=200),
        ),
        migrations.AddConstraint(
            model_name='providercredential',
            constraint=models.UniqueConstraint(condition=models.Q(('kind', 'plivo')), fields=('tenant', 'account'), name='providercredential_tenant_account'),
        ),
        migrations.AddConstraint(
            model_name='providercredential',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['llm', 'tts', 'plivo'])), name='providercredential_kind'),
        ),
    ]
