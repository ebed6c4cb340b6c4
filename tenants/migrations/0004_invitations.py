import django.db.models.deletion
import django.db.models.functions.text
import django.utils.timezone
import mirror_saas.ids
import tenants.context
from django.conf import settings
from django.db import migrations, models

from tenants.tenant_tables import platform_function, platform_read, tenant_foreign_key, tenant_wall


class Migration(migrations.Migration):

    dependencies = [
        ('tenants', '0003_audit_events'),
    ]

    operations = [
        migrations.CreateModel(
            name='Invitation',
            fields=[
                ('id', models.UUIDField(default=mirror_saas.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('email', models.EmailField(max_length=254)),
                ('role', models.CharField(choices=[('owner', 'Owner'), ('admin', 'Admin'), ('editor', 'Editor'), ('reviewer', 'Reviewer'), ('viewer', 'Viewer')], max_length=16)),
                ('token_hash', models.BinaryField(max_length=32)),
                ('proof_hash', models.BinaryField(max_length=32)),
                ('token_nonce', models.BinaryField(max_length=32)),
                ('invited_by_kind', models.CharField(choices=[('user', 'A person'), ('api_key', 'An API key'), ('system', 'The operator')], max_length=16)),
                ('mail_state', models.CharField(choices=[('waiting', 'On its way'), ('sent', 'Sent'), ('failed', 'Not delivered'), ('not_queued', 'Not sent')], default='waiting', max_length=16)),
                ('mailed_at', models.DateTimeField(blank=True, null=True)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('expires_at', models.DateTimeField()),
                ('accepted_at', models.DateTimeField(blank=True, null=True)),
                ('revoked_at', models.DateTimeField(blank=True, null=True)),
                ('invited_by', models.ForeignKey(db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('invited_by_key', models.ForeignKey(db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='tenants.apikey')),
                ('tenant', models.ForeignKey(db_constraint=False, db_index=False, default=tenants.context.tenant_id_default, editable=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='tenants.tenant')),
            ],
            options={
                'indexes': [models.Index(fields=['token_hash'], name='invitation_token_hash'), models.Index(fields=['tenant', 'invited_by'], name='invitation_tenant_inviter'), models.Index(fields=['tenant', 'invited_by_key'], name='invitation_tenant_key')],
                'constraints': [models.UniqueConstraint(fields=('tenant', 'id'), name='invitation_tenant_id'), models.UniqueConstraint(condition=models.Q(('accepted_at', None), ('revoked_at', None)), fields=('tenant', 'email'), name='invitation_tenant_pending'), models.CheckConstraint(condition=models.Q(('role__in', ['owner', 'admin', 'editor', 'reviewer', 'viewer'])), name='invitation_role'), models.CheckConstraint(condition=models.Q(('email', django.db.models.functions.text.Lower('email'))), name='invitation_email_is_lower_case')],
            },
        ),
        migrations.RunSQL(
            'ALTER TABLE tenants_invitation ADD CONSTRAINT tenants_invitation_invited_by_fk FOREIGN KEY (invited_by_id) '
            'REFERENCES tenants_user (id) ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED',
            reverse_sql=migrations.RunSQL.noop,
        ),
        tenant_wall('tenants_invitation'),
        tenant_foreign_key('tenants_invitation', 'invited_by_key_id', 'tenants_apikey', on_delete='SET NULL'),
        platform_read(
            'tenants_invitation', ['tenant_id', 'id', 'token_hash', 'expires_at', 'accepted_at', 'revoked_at']
        ),
        platform_function(
            'invitation_lookup',
            'token_hash bytea',
            'TABLE (tenant_id uuid, invitation_id uuid)',
            'SELECT i.tenant_id, i.id FROM public.tenants_invitation i WHERE i.token_hash = $1'
            ' AND i.accepted_at IS NULL AND i.revoked_at IS NULL AND i.expires_at > statement_timestamp()',
        ),
    ]
