"""Helpers that the tutorials use."""
