"""Frozen image-editing models behind one small protocol; their transformers are diffusers' own."""
