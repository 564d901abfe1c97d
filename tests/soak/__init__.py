"""A soak: a real ladder under everything that may befall it, for as long as one likes (docs/soak.md)."""
