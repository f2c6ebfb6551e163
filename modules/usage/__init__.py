"""Trained models in use: texts that they write, and what they say of texts."""
