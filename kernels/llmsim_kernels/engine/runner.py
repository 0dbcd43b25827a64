"""Runs steps on a device: by CUDA graph on a GPU, as far as the captured sizes reach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmsim.specs.engine import EngineLimits
from llmsim_kernels.engine.cache import PagedCache, StepAttention, kv_bytes_per_block, slots_of
from llmsim_kernels.engine.graphs import DecodeGraphs
from llmsim_kernels.engine.launches import PromptSteps
from llmsim_kernels.engine.model import Decoder, DecoderShape
from llmsim_kernels.engine.scheduler import EngineSettings, Slice
from llmsim_kernels.engine.watch import Watch

_MEMORY_FRAC = 0.75
"""Share of the free memory that KV may take on a GPU; the rest is activations and graphs."""

_CPU_KV_BYTES = 256 << 20


class Runner:
    """A decoder with its cache on one device.

    Parameters
    ----------
    shape : DecoderShape
    settings : EngineSettings
    device : str
        ``cpu`` or ``cuda:0``.

    Attributes
    ----------
    settings : EngineSettings
        With the number of KV blocks decided.
    watch : Watch
        Knows where the time of the last step went.
    """

    def __init__(self, shape: DecoderShape, settings: EngineSettings, device: str) -> None:
        import torch

        self.torch = torch
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        dtype = torch.bfloat16 if on_gpu else torch.float32
        self.decoder = Decoder(shape, self.device, dtype, settings.max_model_len, settings.seed)
        if not settings.kv_blocks:
            room = (
                _MEMORY_FRAC * torch.cuda.mem_get_info(self.device)[0] if on_gpu else _CPU_KV_BYTES
            )
            size = kv_bytes_per_block(shape, settings.block_tokens, dtype.itemsize)
            settings = replace(settings, kv_blocks=int(room // size))
        self.settings = settings
        self.cache = PagedCache(
            shape, settings.kv_blocks, settings.block_tokens, self.device, dtype
        )
        self.watch = Watch(torch, on_gpu)
        self.graphs: DecodeGraphs | None = None
        self.prompts: PromptSteps | None = None
        if on_gpu:
            limits = EngineLimits(
                settings.max_num_seqs,
                settings.max_num_batched_tokens,
                settings.max_model_len,
                settings.block_tokens,
                settings.cuda_graphs,
                settings.max_graph_tokens,
            )
            self.graphs = DecodeGraphs(self.decoder, self.cache, limits)
            self.prompts = PromptSteps(self.decoder, self.cache, limits)

    def run(self, slices: list[Slice]) -> list[int]:
        """Compute a step and return the next token of each slice that samples, in order.

        Notes
        -----
        Tokens are brought to the host before this returns, so its wall time is the step's.
        """
        with self.torch.inference_mode():
            if self.graphs is not None and all(part.decodes for part in slices):
                return self.graphs.run(slices, self.watch)
            # decodes first, whatever the order of decision: one launch serves them on a GPU
            order = sorted(range(len(slices)), key=lambda at: not slices[at].decodes)
            ordered = [slices[at] for at in order]
            if self.prompts is not None:
                found = self.prompts.run(ordered, self.watch)
            else:
                found = self._by_torch(ordered)
        sampling = [at for at in order if slices[at].samples]
        return [token for _, token in sorted(zip(sampling, found, strict=True))]

    def _by_torch(self, slices: list[Slice]) -> list[int]:
        """Compute a step, its attention request by request."""
        torch, size = self.torch, self.settings.block_tokens
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled: list[int] = []
        for part in slices:
            tokens += part.sequence.tokens[part.past : part.past + part.new]
            positions += range(part.past, part.past + part.new)
            slots += slots_of(part, size)
            if part.samples:
                sampled.append(len(tokens) - 1)
        parts = [(part.new, part.past, self._long(part.sequence.blocks)) for part in slices]
        attention = StepAttention(self.cache, self._long(slots), parts)
        inputs = self._long(tokens), self._long(positions), self._long(sampled)
        self.watch.launching()
        found = self.decoder.forward(*inputs, attention)
        self.watch.launched()
        return list(torch.as_tensor(found).tolist())

    def _long(self, values: list[int]) -> Any:
        return self.torch.tensor(values, dtype=self.torch.int64, device=self.device)
