"""Cards: sourced descriptions of GPUs, links, models and prices.

Start with `layers` and `model` (what a model is made of), then `huggingface` (how a config.json
becomes one) and `load`; `requantise` gives a model the formats of another checkpoint. `gpu`,
`kernels` and `link` describe hardware; `price` what it costs; `engine` how an engine is laid out
on it, `serving_engine` what differs by its version, `calibration` what was fitted to runs. `cards`
reads the YAML files: every number in them has a unit and a source, and everything wrong with a file
is reported at once.
"""

from llmsim.specs.calibration import (
    CalibrationCard,
    calibration_names,
    load_calibration,
    read_calibration,
)
from llmsim.specs.cards import CardRow
from llmsim.specs.engine import EngineLimits, HostTerms, ParallelPlan
from llmsim.specs.gpu import GpuCard, PowerPoints, gpu_names, load_gpu
from llmsim.specs.kernels import UNSCALED, KernelTerms, OperatorScales, SmoothRoofline
from llmsim.specs.layers import (
    DenseMlp,
    LatentAttention,
    LayerSpec,
    Linear,
    MoeMlp,
    RecurrentMixer,
    SoftmaxAttention,
    WeightFormat,
)
from llmsim.specs.link import CollectiveLine, LinkCard, link_names, load_link
from llmsim.specs.load import load_model, model_names
from llmsim.specs.model import KV_BYTES, ModelSpec
from llmsim.specs.price import PriceCard, load_prices, offers_of, price_of
from llmsim.specs.quantisation import MXFP4_MARLIN, TRITON
from llmsim.specs.requantise import SCHEMES, by_marlin, by_triton, requantise, skewed
from llmsim.specs.serving_engine import EngineCard, engine_names, load_engine, newest_engine
from llmsim.specs.stages import layers_by_stage, stage_of

__all__ = [
    "KV_BYTES",
    "MXFP4_MARLIN",
    "SCHEMES",
    "TRITON",
    "UNSCALED",
    "CalibrationCard",
    "CardRow",
    "CollectiveLine",
    "DenseMlp",
    "EngineCard",
    "EngineLimits",
    "GpuCard",
    "HostTerms",
    "KernelTerms",
    "LatentAttention",
    "LayerSpec",
    "Linear",
    "LinkCard",
    "ModelSpec",
    "MoeMlp",
    "OperatorScales",
    "ParallelPlan",
    "PowerPoints",
    "PriceCard",
    "RecurrentMixer",
    "SmoothRoofline",
    "SoftmaxAttention",
    "WeightFormat",
    "by_marlin",
    "by_triton",
    "calibration_names",
    "engine_names",
    "gpu_names",
    "layers_by_stage",
    "link_names",
    "load_calibration",
    "load_engine",
    "load_gpu",
    "load_link",
    "load_model",
    "load_prices",
    "model_names",
    "newest_engine",
    "offers_of",
    "price_of",
    "read_calibration",
    "requantise",
    "skewed",
    "stage_of",
]
