"""The program `tfseg train-zls`, from a clone; `tfseg/cli.py` says what it does."""

from tfseg import console

if __name__ == "__main__":
    console.from_clone("train-zls")
