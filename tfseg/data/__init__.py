"""Records on disk, descriptions of data sets, augmentation, batches.

`framing` is the TFRecord file format, `tfexample` what one record holds, `encoded_image` what its
JPEG and PNG tell before they are decoded. `shards` finds the files of a split, `split_index` gives
the `index` of its records (from its file, `index_file`, or from a `shard_scan`), `record_reader`
reads them. `writing` makes splits, `specs` and `colormap` describe data sets. None of these imports
TensorFlow. `augment` and `pipeline` do.
"""
