"""Tables of contents: times are the text's own."""

from __future__ import annotations

from services.jobs.contents import MOST_TIMES, grammar, joined, lines_of, times_of
from services.runner.gbnf_reader import grammar_from


def test_times_are_found_once_in_their_order() -> None:
    text = "[0:05] A: Hi.\n00:12:30 B: And at 1:02:03 we go.\n(0:05) again; 3.14:15, 10:20:30:40 and 7:99 are no times."
    assert times_of(text) == ["00:00:05", "00:12:30", "01:02:03"]
    assert times_of("WEBVTT\n\n00:00:01.500 --> 00:00:04.000\nHello") == ["00:00:01", "00:00:04"]
    assert times_of("No time at all.") == []


def test_grammars_can_be_read_whatever_the_times() -> None:
    for times in ([], ["00:00:05"], [f"{n // 60:02}:{n % 60:02}:00" for n in range(MOST_TIMES + 1)][:MOST_TIMES],
                  [f"{n // 60:02}:{n % 60:02}:00" for n in range(MOST_TIMES + 1)]):
        assert grammar_from(grammar(times))


def test_only_lines_of_a_table_are_read() -> None:
    text = " 00:00:05 – Welcome \nand then\n– Plans\n\n00:01:00 – Re"
    assert lines_of(text, cut=False) == ["00:00:05 – Welcome", "– Plans", "00:01:00 – Re"]
    assert lines_of(text, cut=True) == ["00:00:05 – Welcome", "– Plans"]
    assert lines_of("Here it is:", cut=False) is None and lines_of("", cut=False) is None
    assert lines_of("00:01:00 – Re", cut=True) == ["00:01:00 – Re"], "better than none"


def test_parts_are_joined_by_time_and_what_has_none_stays_in_order() -> None:
    parts = [["00:00:05 – Welcome", "00:10:00 – Plans"], ["00:10:00 – The plans", "00:20:00 – End"]]
    assert joined(parts) == ["00:00:05 – Welcome", "00:10:00 – Plans", "00:20:00 – End"]
    assert joined([["– B", "– A"], ["– a", "– C"]]) == ["– B", "– A", "– C"]
