"""Parts of the converter of COCO: its json, its outlines, its files."""
