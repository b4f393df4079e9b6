"""Consumers of a whole server on a simulated disk, heard by `harness.testimony`."""
