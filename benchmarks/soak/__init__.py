"""Everything that can break around calls, at full size, while calls run: `make soak`.

    python -m benchmarks.soak [--calls 50] [--write docs/reliability.md] [FAULT …]

PostgreSQL, Valkey, a stream node, agents, a judge and the callers are all started here. For each fault a number of
calls runs before, during and after it. What became of them is never assumed: a call was disturbed when its caller's
ears say so (calls.py), a record was lost when PostgreSQL does not have what the call's agent knows of (records.py).
"""
