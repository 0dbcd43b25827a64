"""Units. Inside llmsim everything is SI base: seconds, bytes, FLOP, watt, joule, USD.

Clocks inside a simulation count integer nanoseconds, so that equal times are equal.
"""

NS_PER_S = 1_000_000_000
"""Nanoseconds in a second [ns/s]."""

KIB = 1024
"""Bytes in a kibibyte [bytes]."""

MIB = 1024**2
"""Bytes in a mebibyte [bytes]."""

GIB = 1024**3
"""Bytes in a gibibyte [bytes]."""


def seconds_to_ns(seconds: float) -> int:
    """Round a duration to the simulation clock.

    Parameters
    ----------
    seconds : float [s]

    Returns
    -------
    int [ns]
    """
    return round(seconds * NS_PER_S)
