"""Readers of what people have: benchmark files, logs, spans, metrics, pools, any table.

Each module holds one format. `jsonrecords` reads JSON lines and JSON lists, `naming` turns texts
into sessions and clients, `paced` gives times to rows that have none.
"""
