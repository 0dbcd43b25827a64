"""Every kernel of the catalogue against its reference, at both shapes; a wrong one fails."""

import pytest
from llmsim_kernels.catalog import KERNELS, LIMITS, find

from llmsim.core.errors import InputError
from llmsim.specs.profile_rows import OPS

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.torch

EVERY = [
    pytest.param(kernel, dtype, id=f"{kernel.id}-{kernel.variant}-{dtype}")
    for kernel in KERNELS
    for dtype in kernel.dtypes
    if dtype != "bf16"
]


@pytest.mark.parametrize(("kernel", "dtype"), EVERY)
def test_a_kernel_is_close_to_its_reference(kernel, dtype):
    error = kernel.check("cpu", dtype)
    assert error < LIMITS[dtype]
    if dtype == "fp32":  # accumulated in fp32: far below what 16 bits allow
        assert error < 1e-6


def test_entries_are_told_apart_and_named_for_profiles():
    names = [(kernel.id, kernel.variant) for kernel in KERNELS]
    assert len(set(names)) == len(names)
    assert {kernel.op for kernel in KERNELS} <= set(OPS)
    assert {kernel.least_capability for kernel in KERNELS} == {80}


def test_a_wrong_kernel_is_found(monkeypatch):
    from llmsim_kernels.ops import paged_decode, varlen_attention

    # exp2 with the natural logarithm's scale: a classic slip that still looks like attention
    monkeypatch.setattr(paged_decode, "LOG2_E", 1.0)
    assert find("triton.paged_decode.v2").check("cpu", "fp32") > 10 * LIMITS["bf16"]
    monkeypatch.setattr(varlen_attention, "LOG2_E", 1.0)
    assert find("triton.varlen_attention.v1").check("cpu", "fp32") > 10 * LIMITS["bf16"]


def test_a_kernel_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"triton\.paged_decode\.v2"):
        find("triton.paged_decod.v1")
    with pytest.raises(InputError, match="kv fp8"):
        find("triton.paged_decode.v2", "kv fp4")


def test_the_check_prints_every_error(capsys):
    from llmsim_kernels.check import main

    assert main(["triton.rmsnorm.v1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # three variants, fp16 and fp32
    assert all(line.startswith("triton.rmsnorm.v1") and line.endswith("ok") for line in lines)


def test_the_check_reports_a_wrong_kernel(capsys, monkeypatch):
    from llmsim_kernels.check import main
    from llmsim_kernels.ops import kv_int4, reference

    monkeypatch.setattr(kv_int4, "rotate64", lambda x: reference.rotated64(x) * 1.01)
    assert main(["triton.hadamard64.v1"]) == 1
    assert "1.00e-02" in capsys.readouterr().out
    assert main(["triton.hadamard.v1"]) == 2
    assert "triton.hadamard64.v1" in capsys.readouterr().err
