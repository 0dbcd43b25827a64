"""A right scenario to spoil, for the scenario tests."""

from pathlib import Path

GOOD = """\
llmsim: 1
name: good
seed: 3
model: llama-3.1-8b
slo: {ttft_s: 1.0}
traffic:
  arrivals: {kind: gamma, rate_rps: 8, cv: 2.0}
  lengths: {kind: fixed, prompt_tokens: 100, output_tokens: 10}
  requests: 50
engine:
  max_num_seqs: 128
fleet:
  routing: {kind: prefix-affinity, max_imbalance: 4}
  pools:
    main:
      replicas: 2
      gpu: h100-sxm
"""


def write(folder: Path, text: str = GOOD, name: str = "bad.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def spoil(*changes: tuple[str, str]) -> str:
    """Return GOOD with pieces of text replaced; every piece must be there."""
    text = GOOD
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text
