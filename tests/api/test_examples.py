"""Every command has an example in its help, and it runs; docs/commands.md is what the CLI says."""

import contextlib
import io
import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import command_page
import pytest
from blocks import CHECKOUT
from typer.main import get_command

import llmsim as ls
from llmsim.cli.app import app

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from measured_profiles import rows, write_profile

COMMANDS = {" ".join(path): each for path, each in command_page.commands()}
GROUPS = {
    f"llmsim {name}": each
    for name, each in get_command(app).commands.items()
    if getattr(each, "commands", None)
}
SMALL = ("--set", "traffic.requests=60")
SHORT = ("--set", "traffic.duration_s=4", "--set", "traffic.warmup_s=0", "--jobs", "1")
LESS = {
    "llmsim compare": (*SMALL, "--draws", "2", "--jobs", "1"),
    "llmsim knee": (*SMALL, "--tolerance", "0.5", "--jobs", "1"),
    "llmsim placement": (*SHORT, "--tolerance", "0.9"),
    "llmsim plan": ("--no-simulate",),
    "llmsim sweep": (*SMALL, "--jobs", "1"),
}
"""What is added to an example so that it takes seconds; the example stands as it is."""

READ_ONLY = {
    "llmsim calibrate": "needs measured runs and minutes; tests/fidelity/test_calibration.py",
    "llmsim profile import": "takes minutes; tests/unit/test_importers.py",
    "llmsim profile": "takes minutes, and torch; tests/profiler",
    "llmsim gallery run": "takes minutes; tests/gallery",
}
"""Examples whose words are only checked here, and where the command itself is run."""

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip
RESULT = {
    "date": "20260101-000000", "backend": "vllm", "model_id": "llama-3.1-8b", "num_prompts": 8,
    "request_rate": "inf", "max_concurrency": 4, "duration": 2.0, "completed": 8,
    "total_input_tokens": 800, "total_output_tokens": 160, "request_throughput": 4.0,
    "output_throughput": 80.0, "total_token_throughput": 480.0, "mean_ttft_ms": 30.0,
    "median_ttft_ms": 28.0, "mean_tpot_ms": 8.0, "p99_itl_ms": 12.0, "mean_e2el_ms": 180.0,
}  # fmt: skip


@cache
def command():
    """The command line, made once."""
    return get_command(app)


NO_JSON = {"llmsim schema": "what it prints is JSON"}
"""Commands without `--json`, and why."""


def call(words, told=None):
    """Return the exit code and all that was said; talk goes to `told` where there is one."""
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told or out):
        try:
            command().main(words, prog_name="llmsim")
        except SystemExit as end:
            code = end.code or 0
    return code, out.getvalue()


def parsed(words):
    """Return the context of a call without making it: every word must be understood."""
    context, at = command().make_context("llmsim", list(words), resilient_parsing=True), command()
    while getattr(at, "commands", None) and words and words[0] in at.commands:
        at = at.commands[words[0]]
        words = words[1:]
        context = at.make_context(at.name, list(words), parent=context, resilient_parsing=True)
    known = {name for param in at.params for name in (*param.opts, *param.secondary_opts)}
    unknown = [w.split("=")[0] for w in words if re.match(r"--?[a-zA-Z]", w)]
    return [w for w in unknown if w not in known | {"--help"}], at


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What examples speak of."""
    made = tmp_path_factory.mktemp("examples")
    (made / "t.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},100,5\n" for i in range(20))
    )
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "result.json").write_text(json.dumps(RESULT))
    ls.run("quickstart", {"traffic.requests": 60}, out=made / "runs" / "first")
    for name, factor in (("my-profile", 1.0), ("other-profile", 1.1)):
        write_profile(made / name, rows(("gemm", "norm"), factor=factor))
    return made


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_has_an_example_whose_words_are_known(name):
    shown = command_page.example(COMMANDS[name])
    assert shown, f"{name} --help has no line 'Example: {name} ...'"
    assert shown.startswith(name)
    words = shlex.split(shown)[1:]
    unknown, found = parsed(words[: words.index(">")] if ">" in words else words)
    assert unknown == []
    assert found.name == name.split()[-1]


@pytest.mark.parametrize("name", GROUPS)
def test_the_help_of_a_group_has_an_example_too(name):
    shown = command_page.example(GROUPS[name])
    assert shown, f"{name} --help has no line 'Example: {name} ...'"
    assert shown.startswith(name)
    unknown, _ = parsed(shlex.split(shown)[1:])
    assert unknown == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in READ_ONLY])
def test_the_example_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    words = shlex.split(command_page.example(COMMANDS[name]))[1:]
    words = words[: words.index(">")] if ">" in words else words
    code, said = call([*words, *LESS.get(name, ())])
    assert code == 0, said[-2000:]
    assert said.strip()


@pytest.mark.parametrize("path", [path for path, _ in command_page.commands()], ids=" ".join)
def test_every_command_answers_in_json_or_need_not(path):
    """A group that does something when called alone is a command, too."""
    (found,) = [each for words, each in command_page.commands() if words == path]
    options = {name for param in found.params for name in param.opts}
    assert ("--json" in options) != (" ".join(path) in NO_JSON)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_answer_is_one_json_document_and_nothing_else(name, folder, monkeypatch):
    if name in READ_ONLY:
        pytest.skip(f"{READ_ONLY[name]}; its document there")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    words = shlex.split(command_page.example(COMMANDS[name]))[1:]
    words = words[: words.index(">")] if ">" in words else words
    known = {flag for param in COMMANDS[name].params for flag in param.opts}
    more = [*LESS.get(name, ()), *(["--force"] if "--force" in known else [])]
    if name not in NO_JSON:
        more.append("--json")
    talk = io.StringIO()
    code, said = call([*words, *more], talk)
    assert code == 0, talk.getvalue()[-2000:]
    assert json.loads(said, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_the_page_is_current():
    assert command_page.PAGE.read_text(encoding="utf-8") == command_page.page(), (
        "call tests/api/command_page.py"
    )


def shell_lines():
    """Yield (page, words) of every call of llmsim in a block of shell in the documents."""
    for page in sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")]):
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S):
            for line in block.replace("\\\n", " ").splitlines():
                with contextlib.suppress(ValueError):
                    words = shlex.split(line, comments=True)
                    if words[:1] == ["llmsim"]:
                        ends = [at for at, w in enumerate(words) if w in ("|", ">", "&&", ";")]
                        yield page.name, words[1 : min(ends, default=len(words))]


def test_every_call_in_the_documents_is_one_that_there_is():
    lines = list(shell_lines())
    assert len(lines) > 60
    wrong = []
    for page, words in lines:
        unknown, found = parsed(words)
        if unknown or (getattr(found, "commands", None) and not found.invoke_without_command):
            wrong.append((page, " ".join(words), unknown))
    assert wrong == []
