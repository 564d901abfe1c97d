"""The figures of a running scaler in Prometheus' model: what is so now, what has happened, how forecasts turned out.

Owns the names, the units and the labels. A label's values come from the configuration (levels, resources, sensors) or
from a fixed set, never from a request. Knows no HTTP. docs/metrics.md lists them all.
"""
