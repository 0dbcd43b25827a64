from pathlib import Path

from llmsim.results.columns import REQUEST_COLUMNS, TIMELINE_COLUMNS
from llmsim.results.metrics import columns_table, metrics_table

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_docs_hold_every_metric_and_column():
    text = DOC.read_text(encoding="utf-8")
    for table in (metrics_table(), columns_table(REQUEST_COLUMNS), columns_table(TIMELINE_COLUMNS)):
        assert table in text, f"{DOC.name} must hold this table:\n{table}"
