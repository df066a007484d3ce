"""Benchmarks: ratios of times, each against another way to compute the same."""
