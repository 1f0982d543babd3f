"""Predicts plain images: a file, a folder, a pattern or a list; no records are needed.

python predict.py --checkpoint_dir=run --images=photos --output_dir=masks
"""

from tfseg import cli

if __name__ == "__main__":
    cli.predict()
