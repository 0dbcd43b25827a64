"""A model cut into pipeline stages: which layers each has."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from llmsim.core.errors import Fault, InputError
from llmsim.specs.model import ModelSpec


def layers_by_stage(layers: int, stages: int) -> tuple[int, ...]:
    """Return how many layers each stage has, as even as can be [layers].

    Parameters
    ----------
    layers : int [layers]
    stages : int

    Raises
    ------
    InputError
        If there are more stages than layers.

    Notes
    -----
    Layers left over go to the stages before the last, the later ones first, because the last one
    also has the norm and the head (vLLM ``get_pp_indices``, ``vllm/distributed/utils.py``).
    """
    if stages > layers:
        raise InputError(
            f"pp {stages}", [Fault("", "pp", f"{stages} stages, but only {layers} layers.")]
        )
    whole, left = divmod(layers, stages)
    counts = [whole] * stages
    for number in range(left):
        counts[stages - 2 - number] += 1
    return tuple(counts)


def stage_of(model: ModelSpec, stage: int, stages: int) -> ModelSpec:
    """Return the part of a model that one pipeline stage has.

    Parameters
    ----------
    model : ModelSpec
        The whole model.
    stage : int
        From 0: the first, which embeds; the last one has the final norm and the head.
    stages : int

    Raises
    ------
    InputError
        If there are more stages than layers.

    Notes
    -----
    Tied embeddings are on the first and on the last stage. Where the order of the layers is not
    known, they are taken kind by kind.
    """
    counts = layers_by_stage(model.layer_count, stages)
    first = sum(counts[:stage])
    order = model.order or tuple(
        kind for kind, layer in enumerate(model.layers) for _ in range(layer.count)
    )
    own = order[first : first + counts[stage]]
    found = Counter(own)
    kinds = sorted(found)
    return replace(
        model,
        layers=tuple(replace(model.layers[kind], count=found[kind]) for kind in kinds),
        order=tuple(kinds.index(kind) for kind in own),
        has_embedding=stage == 0,
        has_head=stage == stages - 1,
    )
