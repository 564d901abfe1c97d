"""Recordings on real files."""
