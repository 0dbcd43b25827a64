"""A run as a value: tables, metrics, timelines, and a folder to keep them in."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmsim.core.errors import Fault, InputError
from llmsim.results import folder as folders
from llmsim.results.changes import changes_frame, write_changes
from llmsim.results.columns import OUTCOMES
from llmsim.results.facts import RunFacts
from llmsim.results.fairness import fairness_frame, service_windows
from llmsim.results.folder import RunInfo
from llmsim.results.parts import by_client, by_model, by_pool, by_prefill_pool, by_priority
from llmsim.results.programs import program_frame
from llmsim.results.series import load_over_time
from llmsim.results.slo import Slo
from llmsim.results.store import RequestTable
from llmsim.results.stores import link_frame, pin_frame, tier_frame
from llmsim.results.summary import Summary, summarize
from llmsim.results.tokens import Deadline, TokenTimes, fluid_token_rate, fluidity_frame
from llmsim.results.wording import headline

if TYPE_CHECKING:
    import pandas as pd

Render = Callable[["Result"], str]
"""Makes the text of ``report.html``; handed in, since reports lie above results."""


class Result:
    """What a run leaves behind.

    Parameters
    ----------
    table : RequestTable
    facts : RunFacts
    info : RunInfo
    slo : Slo, optional
        Objectives of the scenario.
    warmup_s : float [s]
        Requests that arrived earlier count as load only.
    render : callable, optional
        Makes ``report.html`` when the run is saved; without it the folder has none.

    Examples
    --------
    ::

        result = llmsim.run("scenarios/quickstart.yaml")
        result.metrics["ttft_p99_s"]
        result.requests.query("outcome == 'finished'").ttft_s.describe()
        result.save("runs/quickstart")
    """

    def __init__(
        self,
        table: RequestTable,
        facts: RunFacts,
        info: RunInfo,
        slo: Slo | None = None,
        warmup_s: float = 0.0,
        render: Render | None = None,
    ) -> None:
        self.table = table
        self.facts = facts
        self.info = info
        self.slo = slo or Slo()
        self.warmup_s = warmup_s
        self._render = render
        self._summary: Summary | None = None
        self._requests: pd.DataFrame | None = None

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request in order of arrival, with the columns of `REQUEST_COLUMNS`."""
        if self._requests is None:
            self._requests = self.table.frame()
        return self._requests

    @property
    def programs(self) -> pd.DataFrame:
        """One row per program in order of arrival, with the columns of `PROGRAM_COLUMNS`.

        Raises
        ------
        InputError
            If the requests of this run were no calls of programs.
        """
        if not self.table.has_programs:
            message = "there are none: the traffic of this run has no programs"
            raise InputError(self.info.scenario, [Fault("", "programs", message)])
        return program_frame(self.table, self.table.categories("client"))

    @property
    def tokens(self) -> pd.DataFrame:
        """One row per token that reached a client: request, token (from 0), time_s.

        Raises
        ------
        InputError
            If token times were not taken down (``record.tokens``).
        """
        return self._delivered().frame()

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step, or per stretch of merged decode steps; see `steplog.StepLog`.

        Raises
        ------
        InputError
            If steps were not kept (``record.steps``).
        """
        if self.facts.steps is None:
            message = "were not kept; run with record.steps = true"
            raise InputError(self.info.scenario, [Fault("", "steps", message)])
        return self.facts.steps.frame()

    def fluidity(self, tbt_s: float, ttft_s: float | Deadline | None = None) -> pd.DataFrame:
        """Return deadlines, missed ones and fluidity per request; see `tokens.fluidity_frame`."""
        return fluidity_frame(self._delivered(), self.table, tbt_s, ttft_s)

    def fluid_token_rate(self, missed_frac: float = 0.1, requests_frac: float = 0.99) -> float:
        """Return the rate at which nearly all can read without a stall; see `tokens`."""
        return fluid_token_rate(self._delivered(), missed_frac, requests_frac)

    def _delivered(self) -> TokenTimes:
        if self.facts.tokens is None:
            message = "were not taken down; run with record.tokens = true"
            raise InputError(self.info.scenario, [Fault("", "tokens", message)])
        return self.facts.tokens.delivered(self.table)

    def evaluate(self, slo: Slo | None = None, warmup_s: float | None = None) -> Summary:
        """Return metrics, verdict and SLO claim.

        Parameters
        ----------
        slo : Slo, optional
            Other objectives than the run's own; the simulation need not run again.
        warmup_s : float, optional [s]
            Another warm-up cut than the run's own.
        """
        own = slo is None and warmup_s is None
        if own and self._summary is not None:
            return self._summary
        cut = self.warmup_s if warmup_s is None else warmup_s
        made = summarize(self.table, self.facts, slo or self.slo, cut)
        if own:
            self._summary = made
        return made

    def summary(self, slo: Slo | None = None) -> pd.DataFrame:
        """Return a tidy table: metric, value, unit, ci_low, ci_high, note."""
        return self.evaluate(slo).table()

    @property
    def metrics(self) -> dict[str, float]:
        """Every metric's value by name, in the units of ``docs/metrics.md``."""
        return self.evaluate().values()

    @property
    def by_model(self) -> dict[str, dict[str, float]]:
        """Latencies and attainment of each model's requests; empty where the fleet has one."""
        return by_model(self.table, self.facts, self.slo, self.warmup_s)

    @property
    def by_pool(self) -> dict[str, dict[str, float]]:
        """The same of the requests that each pool ended."""
        return by_pool(self.table, self.facts, self.slo, self.warmup_s)

    @property
    def by_prefill_pool(self) -> dict[str, dict[str, float]]:
        """The same of the requests whose prompts each pool computed for others; may be empty."""
        return by_prefill_pool(self.table, self.facts, self.slo, self.warmup_s)

    @property
    def by_client(self) -> dict[str, dict[str, float]]:
        """Latencies, attainment and tokens of each client; empty where requests name none."""
        return by_client(self.table, self.facts, self.slo, self.warmup_s)

    @property
    def by_priority(self) -> dict[int, dict[str, float]]:
        """The same of each priority class, the most urgent first."""
        return by_priority(self.table, self.facts, self.slo, self.warmup_s)

    @property
    def by_slo_class(self) -> dict[str, dict[str, float]]:
        """The same of each SLO class, and ``goodput_rps``; empty where there are no classes.

        Every request is judged by its class. Requests without a class stand under an empty name.
        """
        return {each.name: dict(each.values) for each in self.evaluate().classes}

    def fairness(self, window_s: float = 60.0) -> pd.DataFrame:
        """Return how alike clients were served in sliding windows; see `fairness.fairness_frame`.

        Parameters
        ----------
        window_s : float [s]

        Raises
        ------
        InputError
            If the requests name no clients, or the window is not positive.
        """
        return fairness_frame(service_windows(self.table, window_s))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be known before the numbers are used."""
        return self.evaluate().warnings

    @property
    def digest(self) -> str:
        """Hash over all decisions: equal runs have equal digests."""
        return self.facts.digest

    def timeline(self, pool: str | None = None, replica: int | None = None) -> pd.DataFrame:
        """Return load over time of the fleet, of one pool, or of one replica.

        Parameters
        ----------
        pool : str, optional
        replica : int, optional
            Index within the fleet.

        Returns
        -------
        pandas.DataFrame (bins, 7)
            t_s (start of the bin), running, waiting [requests], kv_used_frac,
            prefill_tokens_per_s, output_tokens_per_s, busy_frac.

        Raises
        ------
        InputError
            If there is no such pool or replica.
        """
        import pandas as pd

        return pd.DataFrame(load_over_time(self.facts, pool, replica))

    @property
    def changes(self) -> pd.DataFrame:
        """What was done about the fleet while it ran: migrations, replicas added or lost."""
        return changes_frame(self.facts.changes)

    @property
    def tiers(self) -> pd.DataFrame:
        """One row per store below the GPUs: what was found, read, written and forgotten there."""
        return tier_frame(self.facts)

    @property
    def links(self) -> pd.DataFrame:
        """One row per way between a replica and a store: what it carried, and could have."""
        return link_frame(self.facts)

    @property
    def pins(self) -> pd.DataFrame:
        """One row per replica that pins KV between two calls: what became of the pins."""
        return pin_frame(self.facts)

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write the run into a folder, whole or not at all.

        Parameters
        ----------
        folder : str or Path
            New, empty, or with `force` a run folder that is replaced.
        force : bool

        Raises
        ------
        OutputError
            If the folder is taken or cannot be written.
        """
        target = Path(folder)
        with folders.new_folder(target, force) as made:
            codes = self.table.codes("outcome", OUTCOMES)
            counts = np.bincount(codes, minlength=len(OUTCOMES)).tolist()
            outcomes = dict(zip(OUTCOMES, counts, strict=True))
            texts = {
                folders.SCENARIO: self.info.scenario_yaml,
                folders.META: folders.meta_json(
                    self.info, self.facts, self.slo, self.warmup_s, outcomes
                ),
                folders.SUMMARY: json.dumps(self.evaluate().as_json(), indent=1) + "\n",
            }
            if self._render is not None:
                texts[folders.REPORT] = self._render(self)
            for name, text in texts.items():
                (made / name).write_text(text, encoding="utf-8")
            self.table.write(made / folders.REQUESTS)
            folders.write_timelines(self.facts, made / folders.TIMELINES)
            write_changes(self.facts.changes, made)
            if self.facts.tokens is not None:
                self.tokens.to_parquet(made / folders.TOKENS, compression="zstd")
            if self.facts.steps is not None:
                self.facts.steps.write(made / folders.STEPS)
            if self.table.has_programs:
                self.programs.to_parquet(made / folders.PROGRAMS, compression="zstd")
        return target

    @classmethod
    def load(cls, folder: str | Path, render: Render | None = None) -> Result:
        """Read a run that `save` wrote.

        Raises
        ------
        InputError
            If the folder is no run folder, or its tables have other columns than they should.
        """
        source = Path(folder)
        info, facts, slo, warmup_s = folders.read_run(source)
        table = RequestTable(source / folders.REQUESTS)
        if len(table) != facts.requests:  # `summarize` holds a run to this before it is saved
            message = f"holds {len(table)} rows, but meta.json says {facts.requests} requests"
            fault = Fault(str(source / folders.REQUESTS), "", message)
            raise InputError(str(source), [fault])
        return cls(table, facts, info, slo, warmup_s, render)

    def headline(self) -> str:
        """Return the run in a few sentences."""
        return headline(self.evaluate(), self.info.model, self.info.fleet)

    def __repr__(self) -> str:
        lines = [f"Result of {self.info.scenario}: {self.headline()}"]
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        shown = self.summary()[["metric", "value", "unit", "ci_low", "ci_high"]]
        table = shown[shown["value"].notna()].to_html(
            index=False, na_rep="", float_format="{:.4g}".format
        )
        warned = "".join(f"<li>{html.escape(text)}</li>" for text in self.warnings)
        title = html.escape(self.info.scenario)
        return (
            f"<p><b>{title}</b>: {html.escape(self.headline())}</p>"
            f"<ul>{warned}</ul><details><summary>Metrics</summary>{table}</details>"
        )
