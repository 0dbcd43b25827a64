"""Triton kernels, one operator a file: the kernel, its launch, its tile table, its reference.

Every module is imported by name, since importing one imports triton.
"""
