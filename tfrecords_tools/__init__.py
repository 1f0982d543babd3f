"""Programs that make TFRecords from images on disk, and the one that checks them.

`build_*` and `check` are programs. They share `program` (flags and frame), `id_lists` and
`file_finder` (which files), `images`, `masks` and `class_files` (what is in them) and `encoder`
(from both to a record). `coco/` and `checks/` are parts of `build_coco` and of `check`.
"""
