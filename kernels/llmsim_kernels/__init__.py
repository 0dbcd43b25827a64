"""Reference kernels in Triton, the profiler that times them and a small engine built of them.

Importing this package imports neither torch nor triton: they are the extra ``profile``.
"""
