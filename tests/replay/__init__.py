"""The same decision in a closed loop over a recording."""
