"""A small real continuous-batching engine, to check the simulator's prices on your own machine.

`model` a Llama-shaped decoder of random weights · `cache` paged KV and its attention · `scheduler`
who computes what in the next step · `runner` steps on a device, decodes by CUDA graph · `replay`
a trace in real time · `record` the files it writes.

It schedules by the simulator's own idea (one token budget, running requests first), so it checks
cost, not scheduling. One command: ``python -m llmsim_kernels.engine --trace T --model M``.
"""
