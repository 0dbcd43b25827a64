"""The laws hold for every registered policy, those of published systems too."""

import llmsim.systems  # noqa: F401 (registers them)
