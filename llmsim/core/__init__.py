"""The ground floor: errors, units, named random streams, registries, data files.

Start with `errors` (the exception tree), then `registry` (how a policy gets its name).
Nothing here knows what a GPU or a request is; every other room may import from here.
"""
