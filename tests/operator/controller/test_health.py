"""Liveness is freshness: a process that has stopped to do its work is not alive."""

from tailorpo_operator.controller.health import Deadlines


def test_what_is_left_undone_is_named() -> None:
    now = 100.0
    beats = Deadlines(lambda: now, turn=10, list=50)
    assert beats.late() is None
    now = 111.0
    assert beats.late() == "no turn for 11 s"
    beats.beat("turn")
    assert beats.late() is None
    now = 155.0
    beats.beat("turn")
    assert beats.late() == "no list for 55 s"
