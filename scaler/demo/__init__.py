"""What shows scaler at work without a download: a ladder of small models, real memory pressure, a picture."""
