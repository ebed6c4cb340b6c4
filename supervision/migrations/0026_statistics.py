from django.db import migrations

# The planner takes tenant and agent, or tenant and call, for independent and expects a row where there are thousands;
# then it reads all of an agent's verdicts to find the newest fifty. An agent and a call have one tenant.
COLUMNS = {
    'supervision_call': 'agent_id',
    'supervision_turn': 'call_id',
    'supervision_verdict': 'call_id',
    'supervision_tooldecision': 'call_id',
    'supervision_intervention': 'call_id',
}


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0020_webhooks'),
    ]

    operations = [
        migrations.RunSQL(
            f"CREATE STATISTICS {table}_tenant (dependencies) ON tenant_id, {column} FROM {table}",
            reverse_sql=f"DROP STATISTICS {table}_tenant",
        )
        for table, column in COLUMNS.items()
    ]
