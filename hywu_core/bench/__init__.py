"""Measurements anyone can repeat: `python -m hywu_core.bench NAME`, a table and, with --json, a file."""
