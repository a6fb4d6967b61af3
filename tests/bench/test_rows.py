"""The table's figures, and that a report is kept."""

from tests.bench.rows import Report, Row, load, table

FAST = Row("speed", "1 at once", "tok/s", 120, 100)
SOON = Row("session", "turn 9", "ms", 50, 200, less=True)


def test_a_ratio_above_one_is_better():
    assert FAST.ratio == 1.2 and SOON.ratio == 4
    assert Row("speed", "nothing", "tok/s", 1, 0).ratio == float("inf")


def test_a_table_names_bench_and_figures():
    lines = table([FAST, SOON, Row("session", "not shown", "ms", 1, 1, shown=False)]).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["speed", "1", "at", "once", "[tok/s]", "120", "100", "1.20"],
        ["session", "turn", "9", "[ms]", "50", "200", "4.00"]]


def test_a_report_is_kept_and_a_bench_replaced(tmp_path):
    report = Report({"threads": "2"}, [FAST, SOON])
    report.replace("speed", [Row("speed", "4 at once", "tok/s", 1, 2)])
    report.save(tmp_path / "report.json")
    kept = load(tmp_path / "report.json")
    assert kept == report and [row.what for row in kept.rows] == ["turn 9", "4 at once"]
    assert load(None).rows == load(tmp_path / "none").rows == []
