"""Trains a segmentation network in which some classes have a name but no pixel label.

python train_zls.py --dataset_dir=records --train_split=train --class_split=split.json \
  --class_embeddings=vectors.npz --method=strict --train_logdir=run
"""

from tfseg import cli

if __name__ == "__main__":
    cli.train(default_method="strict")
