"""How wrong is llmsim: measured runs are simulated again, and the differences are counted.

Start with `cases` (what was measured); `assumptions` says what a source leaves out, `scenarios`
turns a case into a scenario, `prediction` simulates it, `replay` does many with a cache, `scores`
counts the errors, `tables` and `page` print them.
"""
