"""Trains a network on pixel labels (the supervised baseline).

python train_sup.py --dataset_dir=records --train_logdir=run --train_split=train \
    --model_variant=xception_65 --atrous_rates=6 --atrous_rates=12 --atrous_rates=18 \
    --decoder_output_stride=4 --train_batch_size=8
"""

from tfseg import cli

if __name__ == "__main__":
    cli.train(default_method="supervised")
