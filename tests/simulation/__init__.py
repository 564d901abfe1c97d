"""Whole days of the whole process on one virtual clock: the real manager, scaler, switcher and relay, and a machine and
a runtime that are made up, with faults at every await. What is simulated, and what is not: docs/simulation.md.
"""
