"""Trains a segmentation network in which some classes have a name but no pixel label.

First on the seen classes, then on pseudo labels of the unseen ones:

python train_zls.py --method=spnet --dataset_dir=records --train_split=train \
  --class_split=split.json --class_embeddings=vectors.npz --train_logdir=spnet
python train_zls.py --method=strict --dataset_dir=records --train_split=train \
  --class_split=split.json --class_embeddings=vectors.npz --train_logdir=strict \
  --tf_initial_checkpoint=spnet --initialize_last_layer
"""

from tfseg import cli

if __name__ == "__main__":
    cli.train(default_method="strict")
