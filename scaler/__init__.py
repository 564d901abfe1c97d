"""scaler keeps the best local language model that a machine can sustain, all the time."""
