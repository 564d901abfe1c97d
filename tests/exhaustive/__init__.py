"""Every reachable state of the real machine over a small alphabet of inputs, and the invariants on every edge.

`python -m tests.exhaustive` (`make prove`) prints what was explored. What is proved, and what is not: docs/proof.md.
"""
