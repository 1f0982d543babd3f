"""Golden cases by system: what each array of a case file is, and how ours must agree."""
