"""Playing a recording again: the same decision in a closed loop with a simulated machine, its score, and the best one.

Pure but for the picture: readings in, figures out. Knows the decision from outside, as the effects do.
"""
