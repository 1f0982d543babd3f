"""Trained networks in the formats of other programs.

The room is not called `export`, because that is the name of the function in `tfseg.api`: a module
of that name would take its place as soon as it was imported.
"""
