"""Shared code of the benchmarks; the scripts are in the parent folder."""
