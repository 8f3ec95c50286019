"""Triton kernels of every operator. Nothing here is imported before the first call needs it.

`operators` holds the implementations of `torch.ops.drocc_triton`; `_launch` the one table of launch
shapes; `_rows` what the kernels share. The formulas are those of csrc/math.
"""
