"""Build step: compile the engine's hot modules to C with mypyc, where a C compiler is at hand.

The compiled modules are the same Python sources, bit for bit the same results, two to three times
faster. Without a compiler (or with LLMSIM_PURE=1) the wheel is pure Python and says so in
``llmsim version``. Editable installs stay pure, so that what you edit is what runs.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = (
    "llmsim/core/integers.py",
    "llmsim/costmodel/contract.py",
    "llmsim/costmodel/energy.py",
    "llmsim/costmodel/measured/attention.py",
    "llmsim/costmodel/measured/cost.py",
    "llmsim/costmodel/measured/lines.py",
    "llmsim/costmodel/pipeline.py",
    "llmsim/costmodel/ranked_pipeline.py",
    "llmsim/costmodel/ranks.py",
    "llmsim/costmodel/roofline.py",
    "llmsim/kvcache/content.py",
    "llmsim/kvcache/ledger.py",
    "llmsim/kvcache/mirror.py",
    "llmsim/kvcache/prefix.py",
    "llmsim/kvcache/ranked.py",
    "llmsim/kvcache/segments.py",
    "llmsim/kvcache/store.py",
    "llmsim/policies/reports.py",
    "llmsim/policies/views.py",
    "llmsim/results/bins.py",
    "llmsim/serving/admission.py",
    "llmsim/serving/beliefs.py",
    "llmsim/serving/board.py",
    "llmsim/serving/bylayer.py",
    "llmsim/serving/claims.py",
    "llmsim/serving/clock.py",
    "llmsim/serving/cohort.py",
    "llmsim/serving/config.py",
    "llmsim/serving/continuation.py",
    "llmsim/serving/decision.py",
    "llmsim/serving/decisions.py",
    "llmsim/serving/delivery.py",
    "llmsim/serving/draft.py",
    "llmsim/serving/encoding.py",
    "llmsim/serving/equipment.py",
    "llmsim/serving/fleet.py",
    "llmsim/serving/flows.py",
    "llmsim/serving/forecast.py",
    "llmsim/serving/fork.py",
    "llmsim/serving/fork_lanes.py",
    "llmsim/serving/fork_pipeline.py",
    "llmsim/serving/fork_ranked_pipeline.py",
    "llmsim/serving/fork_ranks.py",
    "llmsim/serving/fork_tiers.py",
    "llmsim/serving/forking.py",
    "llmsim/serving/frontend.py",
    "llmsim/serving/gate.py",
    "llmsim/serving/handoff.py",
    "llmsim/serving/keeper.py",
    "llmsim/serving/labels.py",
    "llmsim/serving/heartbeats.py",
    "llmsim/serving/joint.py",
    "llmsim/serving/lanes.py",
    "llmsim/serving/layered.py",
    "llmsim/serving/leases.py",
    "llmsim/serving/likeness.py",
    "llmsim/serving/lockstep.py",
    "llmsim/serving/logbook.py",
    "llmsim/serving/meter.py",
    "llmsim/serving/microbatch.py",
    "llmsim/serving/migration.py",
    "llmsim/serving/overhang.py",
    "llmsim/serving/pipeline.py",
    "llmsim/serving/port.py",
    "llmsim/serving/preemption.py",
    "llmsim/serving/queue.py",
    "llmsim/serving/ranked_pipeline.py",
    "llmsim/serving/ranks.py",
    "llmsim/serving/replica.py",
    "llmsim/serving/roles.py",
    "llmsim/serving/request.py",
    "llmsim/serving/rerouting.py",
    "llmsim/serving/rounds.py",
    "llmsim/serving/shelf.py",
    "llmsim/serving/slots.py",
    "llmsim/serving/slowed.py",
    "llmsim/serving/staged_port.py",
    "llmsim/serving/step.py",
    "llmsim/serving/stops.py",
    "llmsim/serving/storehouse.py",
    "llmsim/serving/stretch.py",
    "llmsim/serving/swap.py",
    "llmsim/serving/switching.py",
    "llmsim/serving/tape.py",
    "llmsim/serving/together.py",
    "llmsim/serving/turning.py",
    "llmsim/serving/wake.py",
    "llmsim/serving/writer.py",
    "llmsim/serving/watch.py",
)


# the parameter is the type of the builder's own settings, which nothing here looks at
class CompiledEngine(BuildHookInterface):  # type: ignore[type-arg]
    """Adds compiled modules to a wheel, or leaves it pure."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is put together."""
        if self.target_name != "wheel" or version == "editable" or os.environ.get("LLMSIM_PURE"):
            return
        work = Path(tempfile.mkdtemp(prefix="llmsim-build-"))
        try:
            libraries = _compile(Path(self.root), work)
        except (Exception, SystemExit) as error:
            shutil.rmtree(work, ignore_errors=True)
            reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
            self.app.display_warning(
                f"llmsim: the engine was not compiled ({reason}); the wheel is pure Python, "
                "with the same results at a third to a half of the speed"
            )
            return
        self._work = work
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for path in libraries:
            build_data["force_include"][str(path)] = str(path.relative_to(work / "out"))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the compilation left behind."""
        work = getattr(self, "_work", None)
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _compile(root: Path, work: Path) -> list[Path]:
    """Return the compiled libraries, laid out under ``work/out`` as in the wheel."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    source = work / "src"
    shutil.copytree(root / "llmsim", source / "llmsim")
    before = Path.cwd()
    flags = os.environ.get("CFLAGS")
    # where a fused multiply-add exists, compilers use it, and the last digit is not Python's
    os.environ["CFLAGS"] = f"{flags or ''} -ffp-contract=off".strip()
    os.chdir(source)
    try:
        options = [
            "--follow-imports=silent",
            "--ignore-missing-imports",
            "--no-warn-unused-ignores",
        ]
        extensions = mypycify([*options, *COMPILED], opt_level="3", target_dir=str(work / "c"))
        command = build_ext(Distribution({"name": "llmsim", "ext_modules": extensions}))
        command.build_lib = str(work / "out")
        command.build_temp = str(work / "tmp")
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(before)
        if flags is None:
            del os.environ["CFLAGS"]
        else:
            os.environ["CFLAGS"] = flags
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    found = sorted((work / "out").rglob(f"*{suffix}"))
    if len(found) <= len(COMPILED):
        raise RuntimeError(f"{len(found)} of {len(COMPILED) + 1} libraries were built")
    return found
