from pathlib import Path

from llmsim.results.changes import CHANGE_COLUMNS
from llmsim.results.columns import REQUEST_COLUMNS, TIMELINE_COLUMNS
from llmsim.results.metrics import columns_table, metrics_table

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_docs_hold_every_metric_and_column():
    text = DOC.read_text(encoding="utf-8")
    columns = (REQUEST_COLUMNS, TIMELINE_COLUMNS, CHANGE_COLUMNS)
    for table in (metrics_table(), *map(columns_table, columns)):
        assert table in text, f"{DOC.name} must hold this table:\n{table}"
