"""Evaluates the checkpoints of a training directory.

python eval.py --checkpoint_dir=run --dataset_dir=records --eval_logdir=run/eval \
    --eval_split=val --max_number_of_evaluations=1
"""

from tfseg import cli

if __name__ == "__main__":
    cli.evaluate()
