"""The HTTP face: one file a dialect. Knows the manager, and nothing of thresholds or models."""
