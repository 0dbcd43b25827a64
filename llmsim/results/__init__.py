"""What a run leaves behind: columns, histograms, timelines, metrics, the run folder.

Start with `columns` (what is recorded per request), then `summary` (what is made of it).
"""
