"""Prompts that go through the model a group of layers at a time, beside decodes that do it whole.

What a call admits is a *set*. In each of the following steps the set goes through one group of
layers and the decodes through all; after the last group its prompts have their first tokens, and
somebody new may be admitted. The set's hidden states lie in memory meanwhile: ``tokens x hidden x
2`` bytes, which what vLLM keeps free for the largest step covers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmsim.core.errors import InvariantError
from llmsim.core.integers import rounded
from llmsim.costmodel.layer_ranges import LayerCost
from llmsim.policies.batching import BatchingPolicy
from llmsim.serving.replica import Replica
from llmsim.serving.request import PREFILL, Request
from llmsim.serving.stops import Planner, completes


class LayeredReplica(Replica):
    """A replica whose prompts go through the model in groups of layers.

    Takes what `Replica` takes, with a policy that has a method ``layer_groups(tokens)``: how many
    groups a set of so many tokens goes through. Gets its prices before the run.

    Attributes
    ----------
    group : int
        Which group of layers the set goes through in the step that is planned, from 0.
    groups : int
        How many there are for it; 0 while there is no set.
    """

    def prepare(self, cost: LayerCost) -> None:
        """Say what steps cost whose prompts go through a range of layers."""
        groups: Callable[[int], int] | None = getattr(self._policy, "layer_groups", None)
        if groups is None:
            raise InvariantError("a policy of layer groups says how many there are")
        self._layer_cost = cost
        self._grouping: BatchingPolicy = self._policy
        self._layer_groups = groups
        planner = Planner()
        planner.fill = self.fill
        self._policy = planner
        self._plain = False
        self._set: list[tuple[Request, int, int]] = []
        self.group = self.groups = 0

    def fill(self) -> None:
        """Plan the next step: a set's next group of layers, or a new set."""
        draft = self.draft
        if self.groups:
            self.group += 1
            self._set = [c for c in self._set if not c[0].ended and c[0].state == PREFILL]
            if self.group == self.groups or not self._set:
                self.group = self.groups = 0
        if not self.groups:
            self._grouping.plan(self._step)
            self._set = draft.chunks
            if self._set:
                tokens = sum(new for _, new, _ in self._set)
                asked = self._layer_groups(tokens)
                self.groups = max(1, min(asked, self._layer_cost.layers))
        else:
            self._advance_decodes()
            draft.chunks = self._set
        if self.groups:
            done = self.group == self.groups - 1
            draft.logits = sum(completes(chunk) for chunk in self._set) if done else 0

    def _advance_decodes(self) -> None:
        """Give decodes their next tokens, and leave the set under way alone."""
        draft = self.draft
        aside = [request for request, _, _ in self._set]
        for request in aside:
            del draft.running_set[request]
            del draft.prefilling[request]
        draft.advance_running()
        for request in aside:  # admitted last: their places are behind all others
            draft.running_set[request] = None
            draft.prefilling[request] = None

    def _launch_step(self, front: int) -> None:
        super()._launch_step(front)
        energy = self._energy
        if energy is None or self.groups < 2 or not self._set:
            return
        # the energy of a whole step and that of the decodes alone, by the share of the layers
        draft, cohort = self.draft, self.cohort
        count = cohort.count if draft.decoding else 0
        padded = cohort.padded if count else 0
        windowed = cohort.windowed if count else 0
        slices = [(tokens, past) for _, tokens, past in draft.chunks]
        rows = count + draft.logits
        super()._price_step(slices, count, padded, windowed, rows)
        whole = energy.priced_step_uj(count, padded, windowed, rows)
        alone = energy.decode_uj(count, 1, padded, windowed) if count else 0
        first, end = self._range()
        share = (end - first) / self._layer_cost.layers
        self._active_uj = rounded(alone + share * (whole - alone))

    def _range(self) -> tuple[int, int]:
        """Return the first layer of the group under way, and the one behind its last."""
        layers = self._layer_cost.layers
        return self.group * layers // self.groups, (self.group + 1) * layers // self.groups

    def _price_step(
        self, slices: list[tuple[int, int]], decode: int, padded: int, windowed: int, rows: int
    ) -> int:
        if not slices or self.groups < 2:
            return super()._price_step(slices, decode, padded, windowed, rows)
        first, end = self._range()
        return self._layer_cost.step_ns(slices, first, end, decode, padded, windowed, rows)

    def _emit(self, end: int) -> int:
        """Let prompts have their first token once they have gone through the last group."""
        if self.groups and self.group < self.groups - 1:
            return 0
        return super()._emit(end)


def use_layers(costs: Sequence[LayerCost | None], replicas: Sequence[Replica]) -> None:
    """Give every replica whose prompts go through groups of layers its prices.

    Parameters
    ----------
    costs : sequence of LayerCost or None
        By pool.
    replicas : sequence of Replica
        Of all pools; those of pools with such prices are `LayeredReplica`.
    """
    for replica in replicas:
        cost = costs[replica.pool]
        if cost is None:
            continue
        if not isinstance(replica, LayeredReplica):
            raise InvariantError(f"replica {replica.index} computes whole steps")
        replica.prepare(cost)
