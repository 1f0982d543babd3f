"""Prediction on plain images: which files, what is written of them, what is done already."""
