from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0032_call_epochs'),
    ]

    operations = [
        migrations.AddField(
            model_name='call',
            name='test',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddIndex(
            model_name='call',
            index=models.Index(condition=models.Q(('test', True)), fields=['tenant', '-started_at', '-id'], name='call_tenant_test'),
        ),
    ]
