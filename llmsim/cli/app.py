"""Every command with its options. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llmsim.cli.answering import JsonOption
from llmsim.cli.calibrating import calibrate
from llmsim.cli.deploying import deploy
from llmsim.cli.ending import exit_code_for_errors
from llmsim.cli.galleries import gallery_app
from llmsim.cli.helping import Group
from llmsim.cli.planning import plan
from llmsim.cli.profile_tables import add_commands
from llmsim.cli.profiling import profile_app
from llmsim.cli.reporting import report
from llmsim.cli.roofing import show_needs, show_roofline
from llmsim.cli.searching import knee, placement
from llmsim.cli.starting import init, schema
from llmsim.cli.sweeping import sweep
from llmsim.cli.tracing import trace_app
from llmsim.cli.validating import validate

app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    name="llmsim",
    help="How will this model, on these GPUs, with this scheduler, serve this traffic?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
show_app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    help="Show a card with the unit and the source of each number, or what a step costs.\n\n"
    "Example: llmsim show gpu h100-sxm",
    no_args_is_help=True,
)
app.add_typer(show_app, name="show")
add_commands(profile_app)
app.add_typer(profile_app, name="profile")
app.add_typer(gallery_app, name="gallery")
app.add_typer(trace_app, name="trace")

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value, such as fleet.pools.main.replicas=4. The value is YAML.",
    ),
]
ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A YAML file, a run's folder, or a shipped name.")
]


class OnBadRow(StrEnum):
    """What to do with a damaged row."""

    FAIL = "fail"
    SKIP = "skip"


@app.command()
def run(
    scenario: Annotated[
        str | None,
        typer.Argument(
            metavar="[SCENARIO]", help="A YAML file, a run's folder, or a shipped name."
        ),
    ] = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random stream.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder. Default: runs/<scenario>-<time>."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a run folder that is not empty.")] = False,
    quiet: Annotated[bool, typer.Option(help="Print the name of the run folder only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Replay this file instead of the scenario's trace or laws.")
    ] = None,
    on_bad_row: Annotated[
        OnBadRow | None,
        typer.Option(help="Damaged rows of the trace: stop at them, or skip and count them."),
    ] = None,
    draws: Annotated[
        int,
        typer.Option(
            min=0, help="Run it so often again with other prices of its operators: p10 to p90."
        ),
    ] = 0,
    perfetto: Annotated[
        Path | None,
        typer.Option(help="Write a trace for ui.perfetto.dev there: replicas, steps, requests."),
    ] = None,
    from_vllm: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Make the scenario of a command of vLLM."),
    ] = None,
    from_sglang: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="The same of a command of SGLang.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU card of --from-vllm, --from-sglang.")] = None,
    save_scenario: Annotated[
        Path | None, typer.Option(help="Where the made scenario goes. Default: <its name>.yaml.")
    ] = None,
) -> None:
    """Simulate a scenario: every latency, cost and failure of this fleet under this traffic.

    Example: llmsim run --from-vllm "vllm serve Qwen/Qwen3-8B" --gpu h100-sxm --trace t.csv
    """
    with exit_code_for_errors():
        from llmsim.cli.originating import MakeOrder, make_scenario, replaying
        from llmsim.cli.running import RunOrder, run_scenario

        given = list(set_ or ())
        commands = (from_vllm, from_sglang)
        make = MakeOrder(scenario, *commands, gpu, trace, save_scenario, force, tuple(given))
        scenario = make_scenario(make)
        if trace is not None and not make.command:
            given += replaying(scenario, trace, tuple(given))
        if on_bad_row is not None:
            given.append(f"traffic.trace.on_bad_row={on_bad_row.value}")
        order = RunOrder(scenario, tuple(given), seed, out, force, quiet, as_json, draws, perfetto)
        code = run_scenario(order)
    raise typer.Exit(code)


@app.command()
def compare(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A YAML file, a run's folder, or a shipped name.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The same or another one.")],
    set_: SetOption = None,
    set_a: Annotated[
        list[str] | None, typer.Option("--set-a", metavar="KEY=VALUE", help="Change A alone.")
    ] = None,
    set_b: Annotated[
        list[str] | None, typer.Option("--set-b", metavar="KEY=VALUE", help="Change B alone.")
    ] = None,
    draws: Annotated[int, typer.Option(min=2, help="Draws of the operators' prices.")] = 20,
    seeds: Annotated[
        int, typer.Option(min=0, help="Compare under so many seeds, prices as they are, instead.")
    ] = 0,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one per core.")] = -1,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with drawings there, too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate two scenarios side by side, and say how sure it is which one is better.

    Example: llmsim compare quickstart quickstart --set-b fleet.pools.main.gpu=l40s
    """
    with exit_code_for_errors():
        from llmsim.cli.studying import CompareOrder, compare_scenarios

        own = (tuple(set_ or ()), tuple(set_a or ()), tuple(set_b or ()))
        compare_scenarios(CompareOrder(first, second, *own, draws, jobs, seeds, as_json, html))


@app.command()
def check(
    scenarios: Annotated[
        list[str], typer.Argument(metavar="SCENARIO...", help="YAML files or shipped names.")
    ],
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether scenarios are right; if not, everything that is wrong, with its line.

    Example: llmsim check quickstart --set engine.max_num_seqs=64
    """
    with exit_code_for_errors():
        from llmsim.cli.running import check_scenarios

        right = check_scenarios(scenarios, set_ or [], as_json)
    raise typer.Exit(0 if right else 2)


@app.command(name="list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(help="gpus, models, links, prices, scenarios, routing, trace, ..."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what exists: cards, prices, shipped scenarios, the kinds of every seam.

    Example: llmsim list prices
    """
    with exit_code_for_errors():
        from llmsim.cli.looking import list_things

        list_things(what, as_json)


app.command()(validate)
app.command()(calibrate)
app.command()(knee)
app.command()(placement)
app.command()(plan)
app.command()(deploy)
app.command()(report)
app.command()(sweep)
app.command()(init)
app.command()(schema)


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Print the version, and whether the engine is compiled or pure Python.

    Example: llmsim version
    """
    with exit_code_for_errors():
        from llmsim.cli.looking import print_version

        print_version(as_json)


NameArgument = Annotated[str, typer.Argument(help="Name of a card, or a path.")]


@show_app.command(name="gpu")
def show_gpu(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show a GPU card.

    Example: llmsim show gpu h100-sxm
    """
    _show("gpu", name, as_json)


@show_app.command(name="model")
def show_model(
    name: NameArgument,
    quantisation: Annotated[
        str | None, typer.Option(help="As another checkpoint: fp8, fp8_block, nvfp4, int4_awq ...")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens that attention reads.")] = 1024,
    as_json: JsonOption = False,
) -> None:
    """Show a model: layers, weights, KV cache, and the work of one token.

    Example: llmsim show model ./config.json
    """
    with exit_code_for_errors():
        from llmsim.cli.modelling import ModelOrder
        from llmsim.cli.modelling import show_model as show

        show(ModelOrder(name, quantisation, context, as_json))


@show_app.command(name="link")
def show_link(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show a link card.

    Example: llmsim show link nvlink4
    """
    _show("link", name, as_json)


@show_app.command(name="engine")
def show_engine(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show an engine card: what the host of one version does for a step.

    Example: llmsim show engine vllm-0.14
    """
    _show("engine", name, as_json)


@show_app.command(name="calibration")
def show_calibration(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show the factors of a calibration, what they were fitted to, and their errors.

    Example: llmsim show calibration trtllm_h100-sxm
    """
    _show("calibration", name, as_json)


@show_app.command(name="price")
def show_price(
    gpu: Annotated[str, typer.Argument(help="Name of a GPU card.")], as_json: JsonOption = False
) -> None:
    """Show what a GPU costs, by cloud.

    Example: llmsim show price h100-sxm
    """
    _show("price", gpu, as_json)


@show_app.command(name="scenario")
def show_scenario(
    scenario: ScenarioArgument, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show a scenario with every default filled in.

    Example: llmsim show scenario quickstart --set seed=3
    """
    with exit_code_for_errors():
        from llmsim.cli.looking import show_resolved

        show_resolved(scenario, set_ or [], as_json)


@show_app.command(name="step")
def show_step(
    model: Annotated[str, typer.Option(help="Model card, or a path to a config.json.")] = "",
    gpu: Annotated[str, typer.Option(help="GPU card.")] = "",
    scenario: Annotated[
        str | None,
        typer.Option(help="Instead of both and a layout: a YAML file, or a shipped name."),
    ] = None,
    pool: Annotated[str, typer.Option(help="Pool of the scenario, where it has several.")] = "",
    set_: SetOption = None,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel GPUs.")] = 1,
    dp: Annotated[int, typer.Option(min=1, help="Attention ranks of so many GPUs each.")] = 1,
    ep: Annotated[int, typer.Option(min=1, help="Groups of GPUs that share out the experts.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Pipeline stages of so many GPUs each.")] = 1,
    batch: Annotated[int, typer.Option(min=0, help="Decoding requests of each rank.")] = 0,
    context: Annotated[int, typer.Option(min=1, help="Tokens of context of each of them.")] = 1024,
    prefill: Annotated[
        list[str] | None,
        typer.Option(metavar="NEW:PAST", help="A prompt slice: tokens now, tokens before."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what one step costs, operator by operator, and what bounds each.

    Of a model on a GPU, or of a pool of a scenario with its engine, formats and cost.

    Example: llmsim show step --model llama-3.1-8b --gpu h100-sxm --batch 64 --context 2000

    Example: llmsim show step --scenario quickstart --batch 64 --prefill 512
    """
    with exit_code_for_errors():
        from llmsim.api.stepping import step
        from llmsim.cli.stepping import chunks_of, print_step
        from llmsim.core.errors import Fault, InputError
        from llmsim.scenario import Scenario, parse_assignments

        chunks = chunks_of(tuple(prefill or ()))
        layout = {"tp": tp, "dp": dp, "ep": ep, "pp": pp}
        changes = parse_assignments(tuple(set_ or ()))
        if changes and scenario is None:
            fault = Fault("", "--set", "there is no scenario to change.", "Give --scenario, too.")
            raise InputError("show step", [fault])
        wanted = None if scenario is None else Scenario.load(scenario, changes)
        price = step(
            model,
            gpu,
            scenario=wanted,
            pool=pool,
            batch=batch,
            context=context,
            prefill=chunks,
            **layout,
        )
        print_step(price, as_json)


show_app.command(name="roofline")(show_roofline)
show_app.command(name="needs")(show_needs)


def _show(what: str, name: str, as_json: bool) -> None:
    with exit_code_for_errors():
        from llmsim.cli.looking import show_card

        show_card(what, name, as_json)
