"""Tests of the running image."""
