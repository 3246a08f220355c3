"""Arithmetic on time, memory, disk and placement: what will happen and what fits."""
