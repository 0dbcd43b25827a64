"""A run for people: a table in the terminal, and one page that needs nothing but a browser.

Start with `terminal` (what `llmsim run` prints), then `html` (what lies in the run folder) and
`figures` (its drawings). All of it reads a `results.Result`; nothing here computes a metric.
"""
