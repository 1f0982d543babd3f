"""labelme's JSON files, one for each image: reading, painting, and finding their images."""
