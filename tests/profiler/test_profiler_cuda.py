"""The timing method on a GPU, on a torch that only keeps books: graphs, events, a clock."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from llmsim_kernels.profiler.blocks.gemm import gemm
from llmsim_kernels.profiler.cuda import CudaDevice
from llmsim_kernels.profiler.nvml import Board, card_of
from llmsim_kernels.profiler.plan import Plan, Rates
from llmsim_kernels.profiler.spec import Call, DeviceLostError, Effort, RowFault
from llmsim_kernels.profiler.synthetic import SyntheticDevice


class FakeTorch:
    """A GPU whose every call takes a fixed time and whose graphs remember their calls."""

    def __init__(self, call_s: float) -> None:
        self.now_s = 0.0
        self.call_s = call_s
        self.captures: list[list[int]] = []
        self.replays: list[int] = []
        self.capturing: list[int] | None = None
        self.fault: Exception | None = None
        outer = self

        class Stream:
            def wait_stream(self, other) -> None: ...

        class Event:
            def __init__(self, enable_timing) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at_s = outer.now_s

            def synchronize(self) -> None: ...

            def elapsed_time(self, end) -> float:
                return (end.at_s - self.at_s) * 1e3

        class CUDAGraph:
            def capture_begin(self) -> None:
                outer.capturing = self.calls = []

            def capture_end(self) -> None:
                outer.captures.append(self.calls)
                outer.capturing = None

            def replay(self) -> None:
                outer.replays.append(len(self.calls))
                outer.now_s += len(self.calls) * outer.call_s

            def reset(self) -> None: ...

        self.cuda = SimpleNamespace(
            Stream=Stream,
            Event=Event,
            CUDAGraph=CUDAGraph,
            OutOfMemoryError=MemoryError,
            stream=lambda stream: nullcontext(),
            device=lambda index: nullcontext(),
            current_stream=Stream,
            synchronize=self.synchronize,
        )

    @staticmethod
    def inference_mode():
        return nullcontext()

    def synchronize(self, index=0) -> None:
        if self.fault:
            raise self.fault

    def launch(self, which: int) -> None:
        if self.capturing is not None:
            self.capturing.append(which)
        else:
            self.now_s += self.call_s


def device(torch: FakeTorch, **facts) -> CudaDevice:
    made = object.__new__(CudaDevice)
    made.index = 0
    made.board = Board("none")
    made.facts = SyntheticDevice(**facts).facts
    made.bench = SimpleNamespace(torch=torch, forget=lambda: None, pass_gate=lambda call: None)
    made._stream = torch.cuda.Stream()
    return made


def variants(torch: FakeTorch, count: int) -> Call:
    return Call([lambda which=which: torch.launch(which) for which in range(count)])


@pytest.mark.parametrize(("call_s", "copies"), [(2e-6, 75), (2e-6, 1), (3e-3, 4)])
def test_a_replay_takes_a_millisecond_and_visits_every_set_of_operands(call_s, copies):
    torch = FakeTorch(call_s)
    samples = device(torch).replay_graph(variants(torch, copies), Effort(5, 0.06))
    assert samples == pytest.approx([call_s] * len(samples))
    final = torch.captures[-1]
    assert set(final) == set(range(copies))
    assert final[:copies] == list(range(copies))  # in turn, so that none is met while warm
    assert len(final) * call_s >= 1e-3
    timed = [calls for calls in torch.replays if calls == len(final)]
    assert len(timed) >= 3 + 5
    assert len(samples) * len(final) * call_s >= 0.06


def test_eager_rounds_take_a_millisecond_too():
    torch = FakeTorch(5e-6)
    samples = device(torch).run_eager(variants(torch, 3), Effort(5, 0.01))
    assert samples == pytest.approx([5e-6] * len(samples))
    assert len(samples) >= 9  # 10 ms in rounds of a little more than 1 ms
    assert torch.captures == []


def row(build, **key):
    plan = Plan(SyntheticDevice().facts, False, Rates(1e15, 5e12))
    spec = gemm(plan, 16, 1024, 1024, "bf16")
    return type(spec)(1, {**spec.key, **key}, 1.0, 1.0, build, spec.needs, 1e6)


def test_a_row_that_fails_is_a_row_and_a_broken_context_ends_the_run():
    torch = FakeTorch(1e-6)
    made = device(torch)

    def broken(bench):
        raise RuntimeError("CUDA error: misaligned address\nmore")

    with pytest.raises(RowFault, match=r"error: RuntimeError: CUDA error: misaligned address$"):
        made.time(row(broken), Effort())
    torch.fault = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(DeviceLostError, match="misaligned address; then CUDA error: unspec"):
        made.time(row(broken), Effort())


def test_a_full_gpu_is_tried_again_without_old_pools():
    torch = FakeTorch(1e-6)
    made, tries = device(torch), []

    def twice(bench):
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError("CUDA out of memory")
        return variants(torch, 2)

    assert made.time(row(twice), Effort()).median_s == pytest.approx(1e-6)

    def never(bench):
        raise MemoryError("CUDA out of memory. Tried to allocate")

    with pytest.raises(RowFault, match="oom: CUDA out of memory"):
        made.time(row(never), Effort())


def test_what_the_gpu_lacks_is_unsupported(monkeypatch):
    torch = FakeTorch(1e-6)
    made = device(torch)
    made.facts = type(made.facts)("A100", "cuda", 80, 108, 40 << 20, 80 << 30, 70 << 30)
    plan = Plan(made.facts, False, Rates(1e15, 5e12))
    with pytest.raises(RowFault, match="unsupported: sm80 has no fp8"):
        made.time(gemm(plan, 16, 1024, 1024, "fp8"), Effort())
    spec = gemm(plan, 16, 1024, 1024, "int4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RowFault, match="unsupported: triton is not installed"):
        made.time(spec, Effort())
    huge = type(spec)(3, spec.key, 1.0, 1.0, spec.build, "", 90 * 2.0**30)
    with pytest.raises(RowFault, match=r"oom: needs 90\.0 GiB of 70\.0 GiB"):
        made.time(huge, Effort())


# --- the board --------------------------------------------------------------------------------


class FakeNvml(SimpleNamespace):
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, reasons: int, processes: int) -> None:
        super().__init__(reasons=reasons, processes=processes)

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle, which):  # noqa: N802
        return {1: 1755, 2: 2619}[which]

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return 612_300

    def nvmlDeviceGetTemperature(self, handle, which):  # noqa: N802
        raise RuntimeError("not supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [object()] * self.processes


def test_the_board_says_clocks_power_reasons_and_tenants(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(0x1 | 0x4 | 0x40, 3))
    board = Board("1234")
    seen = board.sensors()
    assert (seen.sm_clock_mhz, seen.mem_clock_mhz, seen.power_w) == (1755, 2619, 612.3)
    assert seen.temperature_c is None  # a question that the board does not answer
    assert seen.throttled == ("power cap", "hardware thermal")  # being idle is no reason
    assert board.other_processes() == 2
    assert not board.clocks_locked()


def test_without_nvml_nothing_is_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    board = Board("1234")
    assert not board.there
    assert board.sensors().power_w is None
    assert board.other_processes() == 0
    assert board.details() == {}


def test_products_name_cards_that_exist():
    from llmsim_kernels.profiler.nvml import _CARDS

    from llmsim.specs.gpu import load_gpu

    assert {name: load_gpu(name).name for name in _CARDS} == _CARDS  # each is an alias of its card
    assert card_of("NVIDIA H100 80GB HBM3") == "h100-sxm"
    assert card_of("NVIDIA Z9") == ""
