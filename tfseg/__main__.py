"""`python -m tfseg`: the command `tfseg`, where it is not on the path."""

from tfseg import console

if __name__ == "__main__":
    console.main()
