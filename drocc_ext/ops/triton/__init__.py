"""Triton kernels of every operator. Nothing here is imported before the first call needs it.

A module holds the implementations of operators of `torch.ops.drocc_triton` under their names.
`_launch` has the one table of launch shapes, `_rows` what the kernels share. The formulas are those
of csrc/math.
"""
