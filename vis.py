"""Draws the predictions of a checkpoint and makes a gallery of them.

python vis.py --checkpoint_dir=run --dataset_dir=records --vis_logdir=run/vis \
    --vis_split=val --also_save_raw_predictions
"""

from tfseg import cli

if __name__ == "__main__":
    cli.visualize()
