"""How far the link cards are from measured collectives: by hand, nothing is asserted.

    python tests/benchmarks/collectives.py TABLES/comm.csv.gz

The cards' lines were fitted to every second size of aiconfigurator's rows of one node; ``held`` are
its other sizes, ``all`` the rows of other sources and of several nodes, none of which was fitted.
All-reduce is priced by the fastest library of a card, the custom one of engines up to a node;
sources that measured NCCL alone are slower by that. L40S rows are of a sick host.
"""

from __future__ import annotations

import argparse
import re

import numpy as np
import pandas as pd

from llmsim.costmodel import communication
from llmsim.costmodel.communication import Network
from llmsim.specs import load_gpu, load_link
from llmsim.specs.importers.frames import slug

KINDS = {"all_reduce": "all_reduce", "all_gather": "all_gather", "alltoall": "all_to_all"}
KINDS["reduce_scatter"] = "reduce_scatter"
FITTED = "ai-dynamo/aiconfigurator"


def nodes_of(topology: str, gpus: int) -> int:
    """Return the nodes that a row's topology names."""
    per_node = re.search(r"\((\d+) devices/node", topology)
    if per_node:
        return max(1, gpus // int(per_node.group(1)))
    named = re.search(r"nodes=(\d+)|(\d+) nodes", topology)
    return int(named.group(1) or named.group(2)) if named else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    frame = pd.read_csv(parser.parse_args().table)
    frame = frame[frame["op"].isin(list(KINDS)) & (frame["bytes"] > 0)]
    frame = frame[~frame["variant"].fillna("").str.contains("eager")]
    frame["nodes"] = [
        nodes_of(str(t), n) for t, n in zip(frame["topology"], frame["n_gpu"], strict=True)
    ]
    keys = ["source", "gpu", "op", "n_gpu", "nodes"]
    print(f"{'source':<40}{'gpu':<18}{'collective':<16}{'gpus':>5}{'nodes':>6}{'rows':>6}", end="")
    print(f"{'median':>9}{'p90':>8}{'bias':>8}")
    for (source, gpu, op, gpus, nodes), part in frame.groupby(keys):
        try:
            card = load_gpu(slug(gpu))
        except Exception:
            continue
        between = load_link(card.scale_out) if card.scale_out and nodes > 1 else None
        if nodes > 1 and between is None:
            continue
        best = part.groupby("bytes")["latency_us"].min()
        if source == FITTED:
            best = part.groupby(["gpu", "bytes"])["latency_us"].median().groupby("bytes").min()
            best = best.iloc[1::2]
        sizes = best.index.to_numpy(float)
        network = Network(load_link(card.link), gpus // nodes, between)
        priced = getattr(communication, KINDS[op])(op, 1, sizes, network, gpus).seconds
        error = priced * 1e6 / best.to_numpy() - 1.0
        label = f"{source[:34]} {'held' if source == FITTED else 'all'}"
        print(f"{label:<40}{gpu:<18}{op:<16}{gpus:>5}{nodes:>6}{len(best):>6}", end="")
        print(f"{np.median(abs(error)):>9.1%}{np.quantile(abs(error), 0.9):>8.1%}", end="")
        print(f"{np.median(error):>+8.1%}")


if __name__ == "__main__":
    main()
