"""Liveness is freshness: a process that has stopped to do its work is not alive."""

from tailorpo_operator.controller.health import Deadlines


def test_what_is_left_undone_is_named() -> None:
    now = 100.0
    deadlines = Deadlines(lambda: now, turn=10, list=50)
    assert deadlines.overdue() is None
    now = 111.0
    assert deadlines.overdue() == "no turn for 11 s"
    deadlines.reset("turn")
    assert deadlines.overdue() is None
    now = 155.0
    deadlines.reset("turn")
    assert deadlines.overdue() == "no list for 55 s"
