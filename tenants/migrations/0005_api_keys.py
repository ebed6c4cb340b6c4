from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('tenants', '0004_invitations'),
    ]

    operations = [
        migrations.AddField(
            model_name='apikey',
            name='created_by_id',
            field=models.UUIDField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='apikey',
            name='created_by_kind',
            field=models.CharField(blank=True, default='', max_length=16),
        ),
        migrations.AddField(
            model_name='apikey',
            name='created_by_label',
            field=models.CharField(blank=True, default='', max_length=300),
        ),
        migrations.AddField(
            model_name='apikey',
            name='last_used_ip',
            field=models.CharField(blank=True, default='', max_length=64),
        ),
    ]
