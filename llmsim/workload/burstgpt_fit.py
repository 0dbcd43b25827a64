"""Numbers behind the BurstGPT-like generator, each with what it was fitted on.

Sources, all under CC-BY-4.0 where they are HPMLL/BurstGPT's own:

[A] Aggregates over all 1,429,737 rows of BurstGPT_1.csv (IsabellaLiu99/burstgpt_analysis, commit
    745962c): requests and tokens per day (61 days), requests per hour of day, tokens per minute
    of week 1.
[B] Arrival seconds of six 20-minute windows of days 29 and 33 (NJUDeepEngine/Loquetier, commit
    aae33ba): 11,325 requests.
[C] First 400 rows of BurstGPT_1.csv.
[D] 188 consecutive rows of BurstGPT_3.csv, with sessions and elapsed times.
[E] Row counts in the README of HPMLL/BurstGPT; 10.31 M traces over 213 days (arXiv 2401.17644).

Two streams of requests are told apart. Week 1 holds about 2,800 requests a day, nearly Poisson
within the hour; all but 2 of the first 400 rows are conversations, so week 1 is taken for the
conversation stream, for the whole trace. What the later days have on top is taken for the API
stream: eight times as much, and bursty on every scale.
"""

from __future__ import annotations

PUBLISHED_RATE_RPS = 10.31e6 / (213 * 86_400)
"""Mean over the whole collection, 0.560 [requests/s] [E]."""

FILE_1_RATE_RPS = 1_429_737 / (61 * 86_400)
"""Mean over the 61 days of BurstGPT_1.csv, 0.271 [requests/s] [A]."""

CONVERSATION_FRAC = 2_776 / 23_438
"""Share of conversations: mean requests per day of week 1 over that of all 61 days [A]."""

CONVERSATION_BY_HOUR = (
    0.522, 0.334, 0.221, 0.105, 0.059, 0.052, 0.009, 0.053, 0.291, 1.080, 1.747, 2.171,
    0.942, 1.011, 1.719, 2.292, 2.058, 1.656, 1.055, 1.287, 1.594, 1.488, 1.241, 1.012,
)  # fmt: skip
"""Rate by hour of day over the day's mean: tokens per minute of week 1, by hour [A]."""

API_BY_HOUR = (
    1.022, 0.992, 0.634, 0.582, 0.420, 0.390, 0.224, 0.171, 0.167, 0.338, 0.786, 1.203,
    1.899, 1.608, 1.855, 1.319, 1.437, 1.352, 1.230, 1.648, 1.357, 1.165, 1.145, 1.056,
)  # fmt: skip
"""The same for the API stream: requests per hour of all days less the conversations' [A]."""

FLAT_WEEK = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Rate by day of the week over the week's mean: none can be told from the 61 days (one-way
analysis of variance of log daily counts by day modulo 7: p = 0.42, and 0.14 from day 8) [A]."""

CONVERSATION_DAY_SIGMA = 0.29
"""Standard deviation of log requests per day in week 1 [A]."""

API_DAY_SIGMA = 1.2
"""Standard deviation of the log of a day's API level. Fitted on the daily counts by simulation
over a grid: coefficient of variation 1.10 (real 1.13), median/mean 0.62 (0.62), maximum/mean 6.0
(6.4) over 61 days [A]."""

API_DAY_AR1 = 0.6
"""Correlation of the log level of neighbouring days; gives 0.54 for log counts (real 0.56) [A]."""

MODULATION_STEP_S = 60.0
"""Step of the lognormal modulation within the day [s]: the bursts of [B] last some minutes."""

MODULATION_SIGMA = 0.45
"""Standard deviation of the log modulation. Fitted together with the next two on the geometric
means, over the windows of [B], of the index of dispersion of counts in 1-300 s and of the
inter-arrival CV, over a grid; for the conversation stream it gives 62% of week-1 minutes with
traffic (real 62%, Poisson with the same hourly profile 65%) [A]."""

MODULATION_AR1 = 0.9
"""Correlation of the log modulation of neighbouring steps [B]."""

API_GAP_CV = 2.0**0.5
"""Coefficient of variation of inter-arrival times in operational time: Gamma shape 0.5 [B]."""

CONVERSATION_GAP_CV = 1.0
"""The same for conversations: occupied minutes in week 1 agree with Poisson [A]."""

FAILED_FRAC = 1.0 - 1_404.3 / 1_429.7
"""Share of rows with 0 response tokens in BurstGPT_1.csv, 0.018 [E]."""

FAILURE_FOLLOWS_FRAC = 0.5
"""Chance that a failure brings down the next row too: 6 of 17 failures in [C] follow another,
which is c/(1+c) for c = 0.5."""

QUANTILE_Z = (
    -2.878, -2.326, -1.645, -1.282, -0.674, 0.0, 0.674, 1.282, 1.645, 2.326, 2.878,
)  # fmt: skip
"""Normal quantiles of the length tables below: 0.2, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.8%; the
outermost two hold the smallest and largest value of the sample."""

CHATGPT_PROMPT_TOKENS = (9, 10, 17, 22, 62, 347, 936, 1436, 1636, 1905, 1994)
"""Prompt quantiles of 306 answered ChatGPT conversations [tokens] [C]."""

CHATGPT_OUTPUT_TOKENS = (3, 5, 14, 18, 65, 244, 400, 622, 970, 1441, 2019)
"""Output quantiles of the same rows [tokens] [C]."""

GPT4_PROMPT_TOKENS = (15, 17, 20, 30, 120, 380, 772, 1416, 1771, 2029, 2126)
"""Prompt quantiles of 75 answered GPT-4 conversations [tokens] [C]."""

GPT4_OUTPUT_TOKENS = (2, 12, 21, 25, 79, 231, 365, 479, 525, 682, 737)
"""Output quantiles of the same rows [tokens] [C]."""

CONVERSATION_CHATGPT_FRAC = 0.80
"""Share of ChatGPT among conversations: 320 of 398 [C]."""

RANK_CORRELATION = 0.28
"""Spearman's rho of prompt and output over the 383 answered rows [C]."""

API_TOKENS = 715.0
"""Mean prompt plus output of an API request [tokens]: all tokens of the 61 days less 872 (the mean
of week 1) for each conversation, over the other requests [A]."""

API_OUTPUT_FRAC = 0.29
"""Share of the output in them: 8 API rows, the only ones at hand [C, D]. Weak."""

API_LENGTH_CV = 1.0
"""Coefficient of variation of API prompts and outputs. Assumed: no API lengths are at hand."""

API_CHATGPT_FRAC = 0.5
"""Share of ChatGPT among API requests. Assumed (3 of 8 rows in [C, D])."""

MOST_PROMPT_TOKENS = 31_400
"""Longest prompt in BurstGPT_1.csv and _2.csv [tokens] (data viewer of lzzmm/BurstGPT)."""

MOST_OUTPUT_TOKENS = 12_500
"""Longest output there [tokens] (same)."""

TURNS_PER_SESSION = 182 / 71
"""Mean turns of a session within the sample: 182 conversation rows in 71 sessions [D]."""

TURN_GAP_LOG_MEAN = 5.0
"""Mean log of the time from one request of a session to its next [ln s]: median 126 s [D]."""

TURN_GAP_LOG_SIGMA = 1.56
"""Standard deviation of the same [D]."""

ELAPSED_S = {"ChatGPT": (1.23, 0.0091), "GPT-4": (0.0, 0.11)}
"""Elapsed time of an answered row: seconds plus seconds per output token. ChatGPT by least squares
over its 125 rows of [D]; GPT-4 through the origin, near the median ratio of 0.104."""
