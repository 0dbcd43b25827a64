"""The closed form of a run of decode steps: when tick n ends, and which tick it is now.

Boundaries are ``anchor + C(n)``, with C linear in the number of ticks and in the sums of padded
contexts, both integers. Sums over the ticks already run are kept, so the same float expression is
evaluated whether a stretch is slept through at once or stepped through tick by tick.
"""

from __future__ import annotations

from llmsim.core.integers import rounded
from llmsim.costmodel.contract import PriceLine
from llmsim.serving.cohort import FOREVER, Cohort


class Stretch:
    """Decode steps of one composition, from the anchor on.

    Parameters
    ----------
    cohort : Cohort
        Whose ticks are priced; its `tick` is the next tick of this stretch.
    windowed : bool
        Whether the price depends on the windowed sum.

    Attributes
    ----------
    anchored : bool
        False once the composition has changed: the next launch sets a new anchor.
    front_ns : int [ns]
        When the next tick starts.
    gap_ns : int [ns]
        Duration of the next tick.
    line : PriceLine
    ran_padded, ran_windowed : int [tokens]
        Context sums of the ticks that `run` was last called for, added up over them.
    """

    __slots__ = (
        "_ahead",
        "_ahead_sum",
        "_anchor_ns",
        "_base_ns",
        "_cohort",
        "_padded_done",
        "_per_token_ns",
        "_per_windowed_ns",
        "_ticks_done",
        "_windowed",
        "_windowed_done",
        "anchored",
        "front_ns",
        "gap_ns",
        "line",
        "ran_padded",
        "ran_windowed",
    )

    def __init__(self, cohort: Cohort, windowed: bool) -> None:
        self._cohort = cohort
        self._windowed = windowed
        self._anchor_ns = 0
        self._ticks_done = 0
        self._padded_done = 0
        self._windowed_done = 0
        self._ahead = -1  # ticks the cohort's sums were last asked for
        self._ahead_sum = 0
        self._base_ns = 0.0
        self._per_token_ns = 0.0
        self._per_windowed_ns = 0.0
        self.line = PriceLine(0.0, 0.0)
        self.anchored = False
        self.front_ns = 0
        self.gap_ns = 0
        self.ran_padded = 0
        self.ran_windowed = 0

    def follow(self, cohort: Cohort) -> None:
        """Price the ticks of another cohort, from the next anchor on."""
        self._cohort = cohort
        self.anchored = False

    def mirror(self, other: Stretch) -> None:
        """Be where another stretch is; the cohort has the sums of the other's."""
        self._anchor_ns = other._anchor_ns
        self._ticks_done = other._ticks_done
        self._padded_done = other._padded_done
        self._windowed_done = other._windowed_done
        self._ahead = -1
        self._base_ns = other._base_ns
        self._per_token_ns = other._per_token_ns
        self._per_windowed_ns = other._per_windowed_ns
        self.line = other.line
        self.anchored = other.anchored
        self.front_ns = other.front_ns
        self.gap_ns = other.gap_ns

    def anchor(self, front_ns: int, line: PriceLine) -> None:
        """Start anew at `front_ns` [ns] with a new price."""
        self.line = line
        self._base_ns = line.base_ns
        self._per_token_ns = line.per_token_ns
        self._per_windowed_ns = line.per_windowed_ns
        self._anchor_ns = front_ns
        self._ticks_done = 0
        self._padded_done = 0
        self._windowed_done = 0
        self.anchored = True

    def launch(self, front_ns: int) -> None:
        """Note that the next tick starts at `front_ns` [ns] and find its duration."""
        self.front_ns = front_ns
        self._ahead = -1
        self.gap_ns = self._gap(self._cohort.padded, 0)

    def end_ns(self, ticks: int) -> int:
        """Return when the next `ticks` ticks will have run [ns]."""
        if ticks != self._ahead:
            self._ahead = ticks
            self._ahead_sum = self._cohort.padded_sum(ticks) if ticks else 0
        if self._windowed:
            return self._boundary(ticks, self._ahead_sum)
        time = self._base_ns * (self._ticks_done + ticks) + self._per_token_ns * (
            self._padded_done + self._ahead_sum
        )
        return self._anchor_ns + rounded(time)  # as `_boundary`, without a call

    def start_of_last_ns(self) -> int:
        """Return when the last of the ticks that `end_ns` was last asked for starts [ns]."""
        cohort = self._cohort
        last = cohort.padded + cohort.grown_last
        return self._boundary(self._ahead - 1, self._ahead_sum - last)

    def _boundary(self, ticks: int, ahead: int) -> int:
        """Return when `ticks` ticks with a padded context sum of `ahead` in all have run [ns]."""
        time = self._base_ns * (self._ticks_done + ticks) + self._per_token_ns * (
            self._padded_done + ahead
        )
        if self._windowed:
            clipped = self._cohort.windowed_sum(ticks) if ticks else 0
            time += self._per_windowed_ns * (self._windowed_done + clipped)
        return self._anchor_ns + rounded(time)

    def gap_at(self, step: int) -> int:
        """Return the duration of the `step`-th tick from here, counted from 0 [ns]."""
        cohort = self._cohort
        return self._gap(cohort.padded + cohort.growth(step), step)

    def _gap(self, padded: int, step: int) -> int:
        time = self._base_ns + self._per_token_ns * padded
        if self._windowed:
            sums = self._cohort.windowed_sum
            time += self._per_windowed_ns * (sums(step + 1) - sums(step))
        return rounded(time)

    def longest(self, room_blocks: int, block_tokens: int) -> int:
        """Return how many ticks can run before a finish, a full KV or a knot in the price.

        Parameters
        ----------
        room_blocks : int [blocks]
            KV blocks that these ticks may take.
        block_tokens : int [tokens]
        """
        cohort = self._cohort
        ticks = cohort.due - cohort.tick
        if self._windowed:
            ticks = min(ticks, max(1, cohort.next_saturation() - cohort.tick))
        if (ticks // block_tokens + 1) * cohort.count > room_blocks:
            ticks = cohort.ticks_within(room_blocks, ticks)
        until = self.line.until_tokens
        most = cohort.count * (ticks + cohort.tile)  # a context grows by a token, then is padded
        if until >= FOREVER or cohort.padded + most <= until:
            return ticks
        if cohort.padded + cohort.growth(ticks - 1) <= until:
            return ticks
        low, high = 1, ticks
        while low < high:
            middle = (low + high) // 2
            if cohort.padded + cohort.growth(middle) > until:
                high = middle
            else:
                low = middle + 1
        return low

    def ticks_before(self, time_ns: int, most: int, lookahead: int) -> int:
        """Return how many ticks a call at or after `time_ns` has behind it, from 1 to `most`.

        A call stands at the end of tick j (at its start with lookahead). The first gap is the
        shortest and the last the longest, which bounds j from both sides; what is left is
        stepped through.
        """
        elapsed = time_ns - self.front_ns
        if elapsed <= 0:
            return 1
        step = -(-elapsed // self.gap_ns) + lookahead
        if step > most:
            step = most
        while self.end_ns(step - lookahead) < time_ns and step < most:
            step += 1  # the first gap was rounded up
        longest = self._gap(self._cohort.padded + self._cohort.grown_last, step - 1)
        while (
            step > 1
            and (step - 1 - lookahead) * (longest + 1) >= elapsed
            and self.end_ns(step - 1 - lookahead) >= time_ns
        ):
            step -= 1
        return step

    def run(self, ticks: int) -> int:
        """Account for `ticks` ticks that have run; the cohort is advanced by the caller.

        Returns
        -------
        int [ns]
            Duration of the last of them.
        """
        cohort = self._cohort
        if ticks != self._ahead:
            self._ahead = ticks
            self._ahead_sum = cohort.padded_sum(ticks)
        self._ticks_done += ticks
        self.ran_padded = self._ahead_sum
        self._padded_done += self._ahead_sum
        if self._windowed:
            self.ran_windowed = cohort.windowed_sum(ticks)
            self._windowed_done += self.ran_windowed
        if ticks == 1:
            return self.gap_ns
        return self._gap(cohort.padded + cohort.grown_last, ticks - 1)
