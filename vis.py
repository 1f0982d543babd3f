"""The program `tfseg vis`, from a clone; `tfseg/cli.py` says what it does."""

from tfseg import console

if __name__ == "__main__":
    console.from_clone("vis")
