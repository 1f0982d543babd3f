"""Every setting of the programs: frozen dataclasses, one field = one flag with its help.

Nothing here imports TensorFlow, so that `--help` is instant.

Source: the flag names and defaults are those of PseudoSeg's programs (specification 1.1-1.5).
"""
