"""From a command that starts an engine to a scenario: the way back of `vllm` and `sglang`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from llmsim.core.errors import CardError, Fault, InputError
from llmsim.core.units import GIB, MIB
from llmsim.costmodel import plan_memory
from llmsim.deployment import sglang, vllm
from llmsim.deployment.command import Command, Ignored, read_command
from llmsim.scenario.engine import Engine
from llmsim.specs import GpuCard, ModelSpec, MoeMlp, ParallelPlan, load_gpu, load_model

LARGE_GPU_BYTES: Final = 70 * GIB
"""vLLM has larger defaults from this much memory on, but for the A100 (vllm/engine/arg_utils.py,
get_batch_defaults)."""

_VLLM_LIMITS: Final = {True: (8192, 1024), False: (2048, 256)}
"""vLLM's defaults of a server on a large GPU and on others: tokens and requests of a step."""

_CHUNKS: Final = ((20, 2048, 8, 8), (35, 2048, 24, 80), (60, 4096, 32, 160), (160, 8192, 256, 512))
"""SGLang's defaults by memory below so many GiB: chunk [tokens], largest captured batch with less
than 4 GPUs, with more (server_args.py, _handle_gpu_memory_settings, of 0.5 releases)."""

_LARGEST_CHUNK: Final = (16384, 512, 512)

_GPUS: Final = ("tp", "pp", "dp", "replicas")
"""Keys of a pool whose product is how many GPUs a command takes."""

_LEAST_SGLANG_REQUESTS: Final = 2048
"""SGLang clips the running requests that its memory would hold to 2,048 to 4,096; the lower bound
is what it takes unless KV is plentiful (model_runner.py, of 0.5 releases)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A scenario made of a command.

    Parameters
    ----------
    data : mapping
        What the scenario's file says.
    ignored : tuple of Ignored
        Flags that the scenario does not have.
    assumed : tuple of str
        What the command leaves to the engine, and what was taken for it.
    command : str
    """

    data: Mapping[str, Any]
    ignored: tuple[Ignored, ...]
    assumed: tuple[str, ...]
    command: str

    @property
    def text(self) -> str:
        """The scenario's file, with the command and what became of it in front."""
        words = " ".join(self.command.replace("\\\n", " ").split())
        lines = ["# Made by llmsim from this command:", f"#   {words}"]
        for title, told in (("Assumed:", self.assumed), ("Ignored:", self.ignored)):
            lines += [f"# {title}", *(f"#   {each}" for each in told)] if told else []
        body = yaml.safe_dump(dict(self.data), sort_keys=False, default_flow_style=None, width=100)
        return "\n".join([*lines, body])


def from_command(
    program: str, command: str, gpu: str, trace: Mapping[str, Any] | None = None
) -> Origin:
    """Return the scenario that a command starts one replica of.

    Parameters
    ----------
    program : str
        ``vllm`` or ``sglang``.
    command : str
        Such as ``vllm serve MODEL --tensor-parallel-size 4``.
    gpu : str
        GPU card.
    trace : mapping, optional
        ``traffic.trace`` of the scenario.

    Raises
    ------
    InputError
        If the command cannot be read, or says what no scenario can hold.
    CardError
        If there is no such GPU or model.
    """
    said = read_command(program, command)
    card = load_gpu(gpu)
    model, named = _model(said.model)
    reader = _Vllm(said, card, model) if program == "vllm" else _Sglang(said, card, model)
    pool = reader.pool()
    _check_shown(said, pool)
    data: dict[str, Any] = {
        "llmsim": 1,
        "name": f"{model.name}-{card.name}-{program}",
        "description": f"{model.name} on {card.name}, as a command of {said.table.name} says",
        "model": named,
    }
    if trace is not None:
        data["traffic"] = {"trace": dict(trace)}
    data["engine"] = reader.engine
    data["fleet"] = {"pools": {"main": {"gpu": gpu, **pool}}}
    return Origin(data, tuple(said.ignored), tuple(reader.assumed), command.strip())


def _check_shown(said: Command, pool: Mapping[str, Any]) -> None:
    """Refuse a command that shows its engine fewer GPUs than it needs: that would not start."""
    across = said.values.get("--nnodes", 1) > 1 or "--data-parallel-address" in said.values
    if said.shown is None or across or any(each.value == "ray" for each in said.ignored):
        return  # or it may have GPUs of other nodes
    (word, shown), needed = said.shown, math.prod(pool.get(k, 1) for k in _GPUS)
    if shown < needed:
        sizes = ", ".join(f"{key} {pool[key]}" for key in _GPUS if key in pool) or "tp 1"
        message = f"shows the engine {shown} GPUs, and its flags need {needed} ({sizes})."
        hint = "Show it as many, or say the sizes that it has."
        raise InputError(f"the command of {said.table.name}", [Fault("", word, message, hint)])


def _model(told: str) -> tuple[ModelSpec, str]:
    """Return the model, and how the scenario names it."""
    config = Path(told) / "config.json"
    if config.is_file():
        return load_model(str(config)), str(config.resolve())
    try:
        model = load_model(told)
    except CardError as error:
        hint = "Give a folder with its config.json instead."
        faults = [
            Fault(f.where, f.path or "model", f.message, f.hint or hint) for f in error.faults
        ]
        raise CardError(f"model '{told}'", faults) from None
    return model, model.name


class _Reader:
    """What both engines have in common: flags that say one key of the scenario each."""

    def __init__(self, said: Command, gpu: GpuCard, model: ModelSpec) -> None:
        self.said, self.gpu, self.model = said, gpu, model
        self.engine: dict[str, Any] = {"version": _version(said)}
        self.assumed: list[str] = []
        if not said.release:
            version = self.engine["version"]
            self.assumed.append(f"engine.version: {version} (the newest; an image's tag says more)")
        self._left = dict(said.values)

    def take(self, flag: str, otherwise: Any = None) -> Any:
        """Return what a flag says, and strike it off."""
        if flag not in self.said.table.flags:
            raise KeyError(flag)
        return self._left.pop(flag, otherwise)

    def ignore(self, flag: str, value: Any, text: str) -> None:
        """Name a flag that the scenario does not have."""
        self.said.ignored.append(Ignored(flag, "" if value is True else str(value), text))

    def plain_keys(self) -> None:
        """Put every flag that carries one key of the engine, in its own unit, into that key."""
        for flag in list(self._left):
            row = self.said.table.flags[flag]
            plain = row.takes in ("count", "whole", "number", "share", "switch")
            if plain and len(row.carries) == 1 and row.carries[0].startswith("engine."):
                self.engine[row.carries[0].removeprefix("engine.")] = self._left.pop(flag)

    def word(self, flag: str, key: str, words: Mapping[str, str]) -> None:
        """Put a flag whose words are the engine's own into a key, by the table of words."""
        value = self.take(flag)
        if value is None or value == "auto":
            return
        ours = {theirs: own for own, theirs in words.items()}.get(value)
        if ours is None:
            self.ignore(flag, value, f"no such {key} here: the model's own is taken")
        else:
            self.engine[key] = ours

    def rest(self) -> None:
        """Name every flag that nobody took."""
        for flag, value in self._left.items():
            row = self.said.table.flags[flag]
            text = "ignored: it does not change how long a step takes"
            if set(row.carries) & {"tp", "pp", "dp"}:
                text = "how nodes are joined follows from the GPU's card"
            self.ignore(flag, value, text)

    def quantisation(self) -> None:
        """Say a format that the engine makes of the checkpoint."""
        value = self.take("--quantization")
        if value == "fp8":
            self.engine["quantisation"] = "fp8"
        elif value is not None:
            self.ignore("--quantization", value, "as the checkpoint is: name a model that is so")

    def assume(self, key: str, value: Any, why: str) -> None:
        """Take the engine's own default for a key that the command leaves open."""
        if key not in self.engine:
            self.engine[key] = value
            self.assumed.append(f"engine.{key}: {value} ({why})")


def _version(said: Command) -> str:
    """Return the engine card of the newest release that is not newer than the command's."""
    releases = said.table.releases
    if not said.release:
        return said.table.newest()

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    older = [card for card, at in releases.items() if numbers(at) <= numbers(said.release)]
    return older[-1] if older else next(iter(releases))


class _Vllm(_Reader):
    """The way back of `vllm.vllm_line`."""

    def pool(self) -> dict[str, Any]:
        """Return the keys of the pool; those of its engine are in `engine`."""
        self.plain_keys_but_lookahead()
        pool: dict[str, Any] = {
            "tp": self.take("--tensor-parallel-size", 1),
            "pp": self.take("--pipeline-parallel-size", 1),
            "dp": self.take("--data-parallel-size", 1),
        }
        experts = any(isinstance(each.mlp, MoeMlp) for each in self.model.layers)
        if pool["dp"] > 1 and not experts:
            text = f"replicas: {pool['dp']} (--data-parallel-size of a model without experts)"
            self.assumed.append(text)
            pool |= {"replicas": pool["dp"], "dp": 1}
        if self.take("--enable-expert-parallel"):
            pool["ep"] = pool["tp"] * pool["dp"]
            self._copies(pool)
        self._placed(pool["tp"] * pool["pp"] * pool["dp"], pool)
        if self.take("--enforce-eager"):
            self.engine["cuda_graphs"] = False
        self.word("--kv-cache-dtype", "kv_dtype", vllm.KV_WORDS)
        self.quantisation()
        order = self.take("--scheduling-policy", "fcfs")
        if order != "fcfs":
            pool["batching"] = {"kind": "vllm", "order": order}
        self._tiers(pool)
        self._role(pool)
        self._defaults()
        self.rest()
        return {key: value for key, value in pool.items() if value is True or value != 1}

    def _placed(self, gpus: int, pool: dict[str, Any]) -> None:
        """Say where GPUs are taken to lie that vLLM would number otherwise, and who runs ahead."""
        if pool["pp"] > 1 and self.engine.pop("lookahead", 0):
            self.ignore("--async-scheduling", True, "micro-batches in flight take its place (pp)")
        if pool["pp"] > 1 and pool["dp"] > 1 and gpus > self.gpu.node_gpus:
            text = "each stage on nodes of its own (vLLM puts those of a rank side by side, so that"
            self.assumed.append(f"{text} experts talk across nodes: slower than simulated)")

    def _copies(self, pool: dict[str, Any]) -> None:
        if self.take("--enable-eplb"):
            pool["expert_balancing"] = True
        told = self.take("--eplb-config")
        if isinstance(told, dict) and told.get("num_redundant_experts"):
            pool["spare_experts"] = told["num_redundant_experts"]

    def plain_keys_but_lookahead(self) -> None:
        """Put plain flags into keys; whether it schedules ahead is a number of steps here."""
        ahead = self.take("--async-scheduling")
        if ahead is not None:
            self.engine["lookahead"] = int(ahead)
        self.plain_keys()

    def _tiers(self, pool: dict[str, Any]) -> None:
        size = self.take("--kv-offloading-size")
        self.take("--kv-offloading-backend")
        if size:
            pool["kv"] = {"tiers": [{"name": "host", "capacity_bytes": float(size)}]}

    def _role(self, pool: dict[str, Any]) -> None:
        told = self.take("--kv-transfer-config")
        if told is None:
            return
        text = "one pool of a fleet that hands over: write the other one into the scenario, too"
        role = told.get("kv_role") if isinstance(told, dict) else None
        ours = {theirs: own for own, theirs in vllm.ROLES_WORDS.items()}.get(str(role))
        self.ignore("--kv-transfer-config", role or "", text if ours else "not simulated")

    def _defaults(self) -> None:
        large = self.gpu.memory_bytes >= LARGE_GPU_BYTES and not self.gpu.name.startswith("a100")
        tokens, requests = _VLLM_LIMITS[large]
        why = f"vLLM's default of a server on {self.gpu.name}"
        asked = self.engine.get("max_num_seqs")
        if "max_num_batched_tokens" not in self.engine and asked is not None:
            tokens = max(tokens, asked)
        if self.engine.get("chunked_prefill") is False:
            tokens = max(tokens, self.engine.get("max_model_len") or self.model.max_context_tokens)
        self.assume("max_num_batched_tokens", tokens, why)
        self.assume("max_num_seqs", min(requests, self.engine["max_num_batched_tokens"]), why)
        since = self.said.table.flags["--scheduler-reserve-full-isl"].since
        if self.said.table.place(self.engine["version"]) < since:
            self.assume("reserve_full_prompt", False, "older releases look at the first chunk")


class _Sglang(_Reader):
    """The way back of `sglang.sglang_line`."""

    def pool(self) -> dict[str, Any]:
        """Return the keys of the pool; those of its engine are in `engine`."""
        pool = self._layout()
        self._limits(pool)
        self._rules(pool)
        self.word("--kv-cache-dtype", "kv_dtype", sglang.KV_WORDS)
        self.quantisation()
        self._tiers(pool)
        role = self.take("--disaggregation-mode")
        for flag in ("--disaggregation-transfer-backend", "--disaggregation-bootstrap-port"):
            self.take(flag)
        if role is not None:
            text = "one pool of a fleet that hands over: write the other one into the scenario, too"
            self.ignore("--disaggregation-mode", role, text)
        self._memory(pool)
        self.rest()
        return {key: value for key, value in pool.items() if value is True or value not in (0, 1)}

    def _layout(self) -> dict[str, Any]:
        self.take("--model-path")
        extra = self.said.extra
        gpus, ranks = self.take("--tp-size", 1), self.take("--attn-dp-size", 1)
        copies = self._number("--dp-size", 1)
        pool: dict[str, Any] = {"pp": self.take("--pp-size", 1)}
        if extra.get("--enable-dp-attention"):
            ranks, copies = max(ranks, copies), 1
        if gpus % ranks:
            message = f"{ranks} attention ranks do not divide the {gpus} GPUs of --tp-size"
            raise InputError("the command of SGLang", [Fault("", "--dp-size", message)])
        pool |= {"tp": gpus // ranks, "dp": ranks, "replicas": copies}
        pool["ep"] = gpus if extra.get("--enable-ep-moe") else self.take("--ep-size", 1)
        if pool["ep"] > 1:
            pool["spare_experts"] = self.take("--ep-num-redundant-experts", 0)
            pool["expert_balancing"] = bool(self.take("--enable-eplb"))
        method = self.take("--load-balance-method")
        if method == "round_robin" or (method is None and ranks > 1):
            pool["rank_routing"] = "round-robin"
        elif method not in (None, "total_requests"):
            self.ignore("--load-balance-method", method, "not simulated; the least loaded rank")
        return pool

    def _limits(self, pool: dict[str, Any]) -> None:
        ranks = pool["dp"]
        chunk = self.take("--chunked-prefill-size")
        self._chunk_default, self._graphs = _sglang_sizes(self.gpu, pool["tp"] * ranks)
        graphs = [self.take(f"--cuda-graph-backend-{step}") for step in ("decode", "prefill")]
        if "disabled" in graphs or self.said.extra.get("--disable-cuda-graph"):
            self.engine["cuda_graphs"] = False
        length = self.take("--context-length")
        if length is not None:
            self.engine["max_model_len"] = length
        if chunk == -1:
            longest = length or self.model.max_context_tokens
            self.engine |= {"chunked_prefill": False, "max_num_batched_tokens": longest}
        elif chunk is not None:
            self.engine["max_num_batched_tokens"] = max(1, chunk // ranks)
        why = f"SGLang's default on {self.gpu.name}"
        self.assume("max_num_batched_tokens", max(1, self._chunk_default // ranks), why)
        running = self.take("--max-running-requests")
        most = self.engine["max_num_batched_tokens"]
        if running is not None:
            self.engine["max_num_seqs"] = max(1, running // ranks)
            self.engine["max_num_batched_tokens"] = max(most, self.engine["max_num_seqs"])
        self.assume("max_num_seqs", min(_LEAST_SGLANG_REQUESTS, most), "SGLang's least default")
        if self.take("--disable-radix-cache"):
            self.engine["prefix_caching"] = False
        if self.take("--disable-overlap-schedule"):
            self.engine["lookahead"] = 0
        page = self.take("--page-size")
        self.engine["block_tokens"] = 1 if page is None else page
        held = self.take("--max-total-tokens")
        if held is not None:
            self.engine["kv_blocks"] = max(1, held // self.engine["block_tokens"])

    def _rules(self, pool: dict[str, Any]) -> None:
        rules: dict[str, Any] = {"kind": "sglang"}
        order = self.take("--schedule-policy", "fcfs")
        if order in ("fcfs", "lpm"):
            rules["order"] = order
        else:
            self.ignore("--schedule-policy", order, "no such order here; first come, first served")
        factor = sglang.RANKED_CONSERVATIVENESS if pool["dp"] > 1 else 1.0
        rules["conservativeness"] = self.take("--schedule-conservativeness", 1.0) * factor
        rules["mixed_chunk"] = bool(self.take("--enable-mixed-chunk"))
        self._most_prefill: int = self.take("--max-prefill-tokens", 16_384)
        rules["max_prefill_tokens"] = self._most_prefill
        rules["recv_interval_steps"] = self.take("--scheduler-recv-interval", 1)
        if pool["pp"] == 1:
            pool["batching"] = rules
        else:
            text = "batching: vllm (SGLang's own rules are not simulated with pipeline stages)"
            self.assumed.append(text)
        eviction = self.take("--radix-eviction-policy", "lru")
        if eviction == "lfu":
            pool["eviction"] = "lfu"
        elif eviction != "lru":
            self.ignore("--radix-eviction-policy", eviction, "no such order here; lru")

    def _tiers(self, pool: dict[str, Any]) -> None:
        on, size = self.take("--enable-hierarchical-cache"), self.take("--hicache-size")
        write = self.take("--hicache-write-policy", "write_through")
        if not on:
            return
        if not size:
            text = "its size follows from --hicache-ratio; say --hicache-size"
            self.ignore("--enable-hierarchical-cache", True, text)
            return
        gpus = pool["tp"] * pool["dp"] * pool["pp"]
        writes = {theirs: own for own, theirs in sglang.WRITES_WORDS.items()}
        tier = {"name": "host", "capacity_bytes": size * 1e9 * gpus}
        tier["write"] = writes.get(write, "through")
        tier["chunk_tokens"] = max(256, self.engine["block_tokens"])
        pool["kv"] = {"tiers": [tier]}

    def _memory(self, pool: dict[str, Any]) -> None:
        """Turn SGLang's share, of weights and KV, into one that has all else in the budget, too."""
        static = self.take("--mem-fraction-static")
        if static is None:
            static = self._default_share(pool)
            self.assumed.append(f"--mem-fraction-static {static} (SGLang's default, its formula)")
        engine = Engine(**{k: v for k, v in self.engine.items() if k != "kv_blocks"})
        degrees = (pool["tp"], pool["ep"], pool["dp"], pool["pp"])
        plan = ParallelPlan(*degrees, pool.get("spare_experts", 0))
        served = engine.checkpoint(self.model)
        memory = plan_memory(served, self.gpu, plan, engine.limits(served), 1.0, engine.kv_dtype)
        spent = memory.activation_bytes + memory.reserve_bytes + memory.sequence_reserve_bytes
        # a block more, as KV comes in whole ones
        needed = static + (spent + memory.block_bytes) / memory.total_bytes
        share = min(1.0, math.ceil(needed * 1e4) / 1e4)
        self.engine["gpu_memory_utilization_frac"] = share

    def _default_share(self, pool: dict[str, Any]) -> float:
        """Return SGLang's share of memory (server_args.py of 0.5 releases), without speculation."""
        total = self.gpu.memory_bytes / MIB
        ranks = pool["dp"]
        chunk = self.engine["max_num_batched_tokens"] * ranks
        if self.engine.get("chunked_prefill") is False:  # its prompts come in batches of so many
            chunk = self._most_prefill
        kept = 512 + max(chunk, 2048) * 1.5 + self._graphs * 2
        kept += pool["tp"] * ranks * pool["pp"] / 8 * 1024
        if ranks > 1:
            kept += self._graphs * ranks * (4.5 if self._graphs > 300 else 3.0)
        if total > 60 * 1024:
            kept = max(kept, 10 * 1024)
        return float(round((total - kept) / total, 3))

    def _number(self, flag: str, otherwise: int) -> int:
        value = self.said.extra.get(flag, otherwise)
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            message = f"expected a whole number of at least 1, read {value!r}"
            raise InputError("the command of SGLang", [Fault("", flag, message)])
        return number


def _sglang_sizes(gpu: GpuCard, gpus: int) -> tuple[int, int]:
    """Return SGLang's default chunk [tokens] and largest captured batch."""
    for below, chunk, few, many in _CHUNKS:
        if gpu.memory_bytes < below * GIB:
            return chunk, few if gpus < 4 else many
    chunk, few, many = _LARGEST_CHUNK
    return chunk, few if gpus < 4 else many
