"""Parts of the check of a folder of records: one record, one split, between splits, the report."""
