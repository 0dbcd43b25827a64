"""`llmsim profile`: measures what kernels cost on this device and writes a kernel profile.

`spec` what a row is · `plan` which rows · `blocks` their grids and calls · `torchbench` operands
· `cpu`, `cuda`, `synthetic` devices · `session` measures, resumes, keeps to the budget · `report`
ceilings, drift, `meta.json` · `run` one call for all of it.
"""
