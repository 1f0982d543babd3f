"""Programs that make TFRecords from images on disk, and the one that checks them."""
