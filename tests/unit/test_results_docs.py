from pathlib import Path

from llmsim.results.changes import CHANGE_COLUMNS
from llmsim.results.columns import (
    CALL_COLUMNS,
    CLASS_COLUMNS,
    HANDOFF_COLUMNS,
    PROGRAM_COLUMNS,
    REQUEST_COLUMNS,
    TIMELINE_COLUMNS,
)
from llmsim.results.metrics import (
    CLASS_METRICS,
    PROGRAM_METRICS,
    REFUSAL_METRICS,
    STATION_METRICS,
    STOP_METRICS,
    TOKEN_METRICS,
    columns_table,
    metrics_table,
)

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_docs_hold_every_metric_and_column():
    text = DOC.read_text(encoding="utf-8")
    columns = (REQUEST_COLUMNS, CLASS_COLUMNS, CALL_COLUMNS, HANDOFF_COLUMNS, PROGRAM_COLUMNS)
    columns += (TIMELINE_COLUMNS, CHANGE_COLUMNS)
    optional = (CLASS_METRICS, PROGRAM_METRICS, STOP_METRICS, STATION_METRICS, TOKEN_METRICS)
    optional += (REFUSAL_METRICS,)
    defined = [metrics_table(), *map(metrics_table, optional)]
    tables = [*defined, *map(columns_table, columns)]
    for table in tables:
        assert table in text, f"{DOC.name} must hold this table:\n{table}"
