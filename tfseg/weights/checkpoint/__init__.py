"""Checkpoints by variable name: written atomically, verified, with a way back.

A checkpoint holds flat dictionaries, `networks/<network>/<variable name>` and
`state/<name>` (step, optimiser slots, counters), so that a file depends on names and not on how
Python objects are nested. On disk it is an ordinary TensorFlow checkpoint
`model.ckpt-<step>.{index,data-...}` beside a manifest with the size and CRC32C of each file.

`find` says which checkpoint of a folder to use, `reading` opens it, `stored_networks` gives its
networks to models; `store` saves and restores a run, `writing` exports networks alone.
"""
