"""The methods: batches in, named losses out. `settings.methods.METHODS` lists them by name."""
