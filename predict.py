"""The program `tfseg predict`, from a clone; `tfseg/cli.py` says what it does."""

from tfseg import cli

if __name__ == "__main__":
    cli.predict()
