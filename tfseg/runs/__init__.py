"""A run as a whole: settings in, objects and files out; no flags."""
