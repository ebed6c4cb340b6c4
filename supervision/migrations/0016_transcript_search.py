from django.db import migrations

from tenants.tenant_tables import CURRENT_TENANT, platform_procedure, platform_read

# The tenant is a word of every turn, so that one index answers for tenant and words together. No parser makes a word
# with a blank in it, so neither a caller nor a query can write one.
SEARCH = (
    "array_to_tsvector(ARRAY['tenant ' || tenant_id::text])"
    " || to_tsvector('simple'::regconfig, left(customer_text, 32000))"
    " || to_tsvector('simple'::regconfig, left(text, 32000))"
)


class Migration(migrations.Migration):

    dependencies = [
        ('supervision', '0015_reviews_usage_and_privacy'),
    ]

    operations = [
        # The column is PostgreSQL's own affair: no model writes or reads it.
        migrations.RunSQL(
            [
                f"ALTER TABLE supervision_turn ADD COLUMN search tsvector GENERATED ALWAYS AS ({SEARCH}) STORED",
                "CREATE INDEX turn_search ON supervision_turn USING gin (search)",
            ],
            reverse_sql="ALTER TABLE supervision_turn DROP COLUMN search",
        ),
        platform_read('supervision_turn', ['tenant_id', 'call_id', 'search']),
        platform_procedure(
            'turn_search',
            'query text, most integer',
            'TABLE (call_id uuid)',
            f"""
            DECLARE
                tenant constant uuid := {CURRENT_TENANT};
                words constant tsquery := websearch_to_tsquery('simple', query);
            BEGIN
                IF tenant IS NULL OR numnode(words) = 0 THEN
                    RETURN;
                END IF;
                RETURN QUERY EXECUTE
                    'SELECT t.call_id FROM public.supervision_turn t'
                    ' WHERE t.tenant_id = $1 AND t.search @@ $2 LIMIT $3'
                    USING tenant, quote_literal('tenant ' || tenant)::tsquery && words, most;
            END
            """,
        ),
    ]
