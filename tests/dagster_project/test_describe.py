import pyarrow as pa

from dagster_project.describe import column_schema, figures, line_of, markdown_table, picture
from pipelines.job import JobReport
from schemas.registry import all_contracts, contract


def test_every_column_of_every_contract_is_shown_with_its_meaning():
    for wanted in all_contracts().values():
        shown = column_schema(wanted).columns
        assert [c.name for c in shown] == wanted.names
        for column, meant in zip(shown, wanted.columns, strict=True):
            assert meant.meaning in column.description
            assert column.constraints.nullable == meant.nullable


def test_a_unit_and_the_meaning_of_null_are_part_of_the_description():
    column = column_schema(contract("noise_annotations")).columns[3]
    assert column.name == "sigma_min"
    assert "[sigma in noise_space]" in column.description
    assert "null: usable at no high level" in column.description


def test_an_untrusted_caption_cannot_become_markup():
    rows = pa.table({"caption": ["<script>x</script> | ![a](http://b) `c`\nnext"]})
    cell = markdown_table(rows).splitlines()[2]
    assert "<" not in cell.replace("&lt;", "")
    assert "\\|" in cell
    assert "\\!\\[a\\]\\(" in cell
    assert len(markdown_table(rows).splitlines()) == 3


def test_a_long_cell_is_cut():
    assert len(markdown_table(pa.table({"a": ["x" * 1000]})).splitlines()[2]) < 60


def test_figures_count_rows_that_stand_whether_written_now_or_before():
    report = JobReport("score", "b", read=10, written=0, unchanged=10, seconds=2.0)
    found = figures(report)
    assert found["dagster/row_count"] == 10
    assert found["per_second"] == 5.0
    assert found["line"] == "10 unchanged"


def test_rejections_stand_in_the_progress_line_with_their_reasons():
    report = JobReport("ingest", "b", read=5, written=3, rejected={"truncated": 2})
    assert line_of(report) == "3 rows, 2 rejected (truncated 2)"


def test_a_picture_is_inline():
    assert picture(b"\x89PNG", "levels").md_str.startswith("![levels](data:image/png;base64,")
