from __future__ import annotations

from tests.recorder.calls import call_log, everything, rows, whole_call


async def test_a_whole_call_reaches_every_table(tenants, recorder):
    log = call_log(recorder.record, tenants.alice)
    for data in whole_call(tenants.alice):
        log.add(data)
    await recorder.drained(10)
    url, alice = tenants.app_url, tenants.alice

    events = rows(url, alice, "supervision_callevent", "seq")
    assert [e["seq"] for e in events] == list(range(1, log.seq + 1))
    print(recorder.counts)
    for t in everything(url, alice).items():
        print(t)
    assert tenants.stranger_is_untouched()
