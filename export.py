"""Writes a trained network in the format of another program, compared with its checkpoint.

python export.py --checkpoint_dir=run --format=tflite --size=257,257 --output=exported
"""

from tfseg import cli

if __name__ == "__main__":
    cli.export()
