"""Estimators of influence that people use, each through its own library, beside the exact one.

`prepare` trains the networks and computes the oracle, in the project's environment. `case` measures
one estimator in a process of its own, in the environment of the peers, which needs nothing of the
project: `solvers` says how each library is called. `plan` lists what is measured, `tasks` compares
whole computations with this library's, and `python -m bench.peers` runs all and writes the records.
"""
