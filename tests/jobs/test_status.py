"""The job tables."""

from __future__ import annotations

from qsd_trio.jobs import status as st
from qsd_trio.qapi import JobStatus, JobVerb


def test_the_tables_speak_of_qapis_states_and_verbs() -> None:
    states = {status.value for status in JobStatus}
    assert st.TRANSITIONS.keys() == states
    # "change" came with 8.2, and nothing in the schema shows it.
    assert st.VERBS.keys() - {"change"} == {verb.value for verb in JobVerb}
    for table in (st.TRANSITIONS, st.VERBS):
        for targets in table.values():
            assert targets <= states


def test_every_state_can_be_reached_and_left() -> None:
    reached = {st.UNDEFINED}
    while more := {new for old in reached for new in st.TRANSITIONS[old]} - reached:
        reached |= more
    assert reached == set(st.TRANSITIONS)
    assert [state for state, following in st.TRANSITIONS.items() if not following] == [st.NULL]
