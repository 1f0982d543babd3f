"""What is built on a backbone."""
