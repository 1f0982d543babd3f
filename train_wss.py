"""Trains a segmentation network with few pixel labels, by default with PseudoSeg.

python train_wss.py --dataset_dir=records --train_split=labelled --train_split_cls=unlabelled \
  --train_logdir=run --model_variant=xception_65 --decoder_output_stride=4
"""

from tfseg import cli

if __name__ == "__main__":
    cli.train(default_method="pseudoseg")
