"""Pure functions of tensors: no variables, no classes with state, no flags."""
