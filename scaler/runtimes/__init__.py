"""What can load a level and answer with it: one file a runtime, all behind `protocol`."""
