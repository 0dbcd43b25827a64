"""Runs and what is made of several of them.

Start with `single` (a scenario simulated once), then `draws` (again and again under other prices
of its operators) and `comparison` (two of these against each other).
"""
