"""The photographic operations, a family a file; `hywu_core.data.photo_ops` is their registry."""
