"""Records on disk, descriptions of data sets, augmentation, batches.

`framing` is the TFRecord file format, `tfexample` what one record holds, `records` finds and reads
the shards of a split, `writing` makes them, `specs` and `colormap` describe data sets. None of
these imports TensorFlow. `augment` and `pipeline` do.
"""
