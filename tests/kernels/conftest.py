"""Kernels run in Triton's interpreter, on the CPU.

Triton reads the variable when it is imported, which is after this file. bf16 is left out of the
interpreter's tests: it multiplies bf16 matrices wrongly.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"
