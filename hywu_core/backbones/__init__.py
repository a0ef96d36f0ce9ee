"""Frozen image-editing models behind one small protocol; diffusers runs them, nothing of a transformer is written here."""
