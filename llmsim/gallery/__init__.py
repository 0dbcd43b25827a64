"""Published systems put to the test: cards, the runs they ask for, and what came out.

Start with `card` (what a card may say), then `reading` (a file to a checked card), `running` (a
card to results), `scoring` (results to verdicts) and `page` (all of it as Markdown).
"""
