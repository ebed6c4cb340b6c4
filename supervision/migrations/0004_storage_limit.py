from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0003_stream_keys_revoked'),
    ]

    operations = [
        migrations.AddField(
            model_name='call',
            name='storage_limit',
            field=models.BooleanField(db_default=False, default=False),
        ),
    ]
