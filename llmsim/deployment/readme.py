"""The README of a deployment: what is what, what is assumed, what could not be said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmsim.deployment.manifests import Launch, node_selector
from llmsim.deployment.tables import FlagTable, load_facts

if TYPE_CHECKING:
    from llmsim.deployment.made import Deployment


def render_readme(deployment: Deployment, files: Sequence[str]) -> str:
    """Return the text of ``README.md``.

    Parameters
    ----------
    deployment : Deployment
    files : sequence of str
        Paths of the other files.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Markdown, not HTML: nothing to escape but the bars of tables
    environment = Environment(
        loader=PackageLoader("llmsim.deployment", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    template = environment.get_template("readme.md.j2")
    return template.render(
        name=deployment.scenario.name,
        description=deployment.scenario.description,
        pools=[_pool(launch) for launch in deployment.launches],
        flags=_flags(deployment),
        notes=deployment.notes,
        files=files,
        routers=deployment.routers,
        several_nodes=any(launch.site.nodes > 1 for launch in deployment.launches),
        apart=any(path.startswith(("llm-d/", "dynamo/")) for path in files),
        scaled=any(path.endswith("adapter-values.yaml") for path in files),
        facts=load_facts("kubernetes"),
        stacks=load_facts("stacks"),
    )


def _pool(launch: Launch) -> dict[str, Any]:
    """Return a pool's row."""
    site = launch.site
    selector, _ = node_selector(site)
    ((label, value),) = selector.items()
    return {
        "name": site.name,
        "role": site.pool.role,
        "engine": f"{site.table.name} {site.release}",
        "model": site.model,
        "checkpoint": site.checkpoint,
        "replicas": site.pool.replicas,
        "gpus": f"{site.node_gpus} x {site.gpu.name}",
        "nodes": site.nodes,
        "label": f"{label}={value}",
        "weights_gib": f"{site.memory.weights_bytes / 2**30:.1f}",
        "kv_tokens": f"{site.memory.kv_tokens:,}" if site.memory.kv_bytes_per_token else "any",
    }


def _flags(deployment: Deployment) -> list[dict[str, str]]:
    """Return every flag that stands in a command, once per program, with its meaning and source."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for launch in deployment.launches:
        for argument in (*launch.leader, *launch.worker):
            _add(found, launch.site.table, launch.site.release, argument.flag)
    for plan in deployment.routers:
        from llmsim.deployment.router import router_line

        for where in ("cluster", "hosts"):
            for argument in router_line(plan, where).arguments:
                _add(found, plan.table, plan.release, argument.flag)
    return list(found.values())


def _add(
    found: dict[tuple[str, str], dict[str, str]], table: FlagTable, release: str, flag: str
) -> None:
    row = table.flags.get(flag) or table.flags[f"--{flag.removeprefix('--no-')}"]
    found[table.program, row.name] = {
        "program": table.name,
        "flag": row.name,
        "carries": ", ".join(row.carries),
        "meaning": row.meaning,
        "source": row.source.format(release=release),
    }
