#!/usr/bin/env bash
# Learning Pseudo Labels in two stages, from records to the number without image-level labels.
#
#   bash experiments/learning_pseudo_labels.sh
#
# runs it on scenes of digits, which it makes. Any parameter below can be set in the environment:
#
#   DATASET_DIR=records/voc OUTPUT_DIR=lpl_92 LABELLED_SPLIT=train_first_92 ALL_SPLIT=train_aug \
#     STAGE1_FLAGS=experiments/learning_pseudo_labels/voc12_92.flags \
#     STAGE2_FLAGS=experiments/learning_pseudo_labels/voc12_stage2.flags \
#     TRAIN_FLAGS=--pretrained_weights=resnet101s.pth CROP=513,513 DENSE_CRF=true \
#     PREDICTION_FLAGS="--eval_scales=0.5 --eval_scales=0.75 --eval_scales=1 --eval_scales=1.25 \
#       --eval_scales=1.5 --add_flipped_images --merge_scales=logits --scale_kernel=cubic" \
#     bash experiments/learning_pseudo_labels.sh
#
# Each step is an ordinary command, printed before it runs. Run again, it goes on where it stopped:
# finished steps are passed over, a training resumes from its checkpoint. With other parameters than
# those that OUTPUT_DIR was begun with it stops with exit code 2.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
OUTPUT_DIR=${OUTPUT_DIR:-demo_output/learning_pseudo_labels}
DATASET_DIR=${DATASET_DIR:-}          # records; empty: scenes of digits
LABELLED_SPLIT=${LABELLED_SPLIT:-train}     # images with masks
ALL_SPLIT=${ALL_SPLIT:-train_aug}           # all training images, with image-level labels
VAL_SPLIT=${VAL_SPLIT:-val}
STAGE1_FLAGS=${STAGE1_FLAGS:-experiments/digits_lpl_stage1.flags}
STAGE2_FLAGS=${STAGE2_FLAGS:-experiments/digits_lpl_stage2.flags}
TRAIN_FLAGS=${TRAIN_FLAGS:-}                # more flags of both trainings, separated by spaces
CROP=${CROP:-97,97}                         # evaluation crop
PREDICTION_FLAGS=${PREDICTION_FLAGS:-}      # more flags of eval.py and vis.py
TEACHER=${TEACHER:-hybrid}                  # whose labels stage 2 learns: hybrid or pseudo
RETRAIN_FROM=${RETRAIN_FROM:-flags}         # flags: as STAGE2_FLAGS say (published: ImageNet
                                            # weights); stage1: from HybridNet's, for short runs
DENSE_CRF=${DENSE_CRF:-false}               # also evaluate the last network with a dense CRF
SEED=${SEED:-0}

PARAMETERS=(DATASET_DIR LABELLED_SPLIT ALL_SPLIT VAL_SPLIT STAGE1_FLAGS STAGE2_FLAGS TRAIN_FLAGS CROP
  PREDICTION_FLAGS TEACHER RETRAIN_FROM SEED)
FLAGFILES=(STAGE1_FLAGS STAGE2_FLAGS)
LATE=(VAL_SPLIT STAGE2_FLAGS CROP PREDICTION_FLAGS TEACHER RETRAIN_FROM)
SPLITS=(LABELLED_SPLIT ALL_SPLIT VAL_SPLIT)
. experiments/recipe.sh

case $RETRAIN_FROM in
  flags) retrain_flags=() ;;
  stage1) retrain_flags=("--tf_initial_checkpoint=$OUTPUT_DIR/stage1" --initialize_last_layer) ;;
  *) stop "RETRAIN_FROM=$RETRAIN_FROM is neither flags nor stage1" ;;
esac
case $TEACHER in
  hybrid | pseudo) ;;
  *) stop "TEACHER=$TEACHER is neither hybrid nor pseudo" ;;
esac
case $DENSE_CRF in
  true | false) ;;
  *) stop "DENSE_CRF=$DENSE_CRF is neither true nor false" ;;
esac
# Lists of flags are split at spaces on purpose.
# shellcheck disable=SC2206
train_flags=($TRAIN_FLAGS) prediction_flags=($PREDICTION_FLAGS)
begin
# A mistake is told now, not after the first training.
for program in eval.py vis.py; do
  check_flags $program ${prediction_flags[@]+"${prediction_flags[@]}"}
done
check_flags train_sup.py --flagfile="$STAGE2_FLAGS" ${train_flags[@]+"${train_flags[@]}"}

if [ -z "$DATASET_DIR" ]; then
  DATASET_DIR=$OUTPUT_DIR/digits
  step 0_digits "$PYTHON" tfrecords_tools/build_digits.py --output_dir="$DATASET_DIR" \
    --image_size=97 --num_digits=4 --num_train=24
fi

step 1_train "$PYTHON" train_wss.py --flagfile="$STAGE1_FLAGS" --dataset_dir="$DATASET_DIR" \
  --train_split="$LABELLED_SPLIT" --train_split_cls="$ALL_SPLIT" --seed="$SEED" \
  --train_logdir="$OUTPUT_DIR/stage1" ${train_flags[@]+"${train_flags[@]}"}

evaluate 2_hybrid "$OUTPUT_DIR/stage1" --network=hybrid --use_image_labels \
  ${prediction_flags[@]+"${prediction_flags[@]}"}
evaluate 2_pseudo "$OUTPUT_DIR/stage1" --network=pseudo --use_image_labels \
  ${prediction_flags[@]+"${prediction_flags[@]}"}

step 3_pseudo_labels "$PYTHON" vis.py --checkpoint_dir="$OUTPUT_DIR/stage1" \
  --dataset_dir="$DATASET_DIR" --vis_split="$ALL_SPLIT" --vis_crop_size="$CROP" \
  --vis_logdir="$OUTPUT_DIR/pseudo_labels" --network="$TEACHER" --use_image_labels \
  --also_save_raw_predictions ${prediction_flags[@]+"${prediction_flags[@]}"}

step 4_records "$PYTHON" tfrecords_tools/build_pseudo_labels.py --dataset_dir="$DATASET_DIR" \
  --labelled_split="$LABELLED_SPLIT" --ids_of_split="$ALL_SPLIT" \
  --pseudo_labels_dir="$OUTPUT_DIR/pseudo_labels/raw_segmentation_results" \
  --output_split=pseudo --output_dir="$OUTPUT_DIR/records"

step 5_retrain "$PYTHON" train_sup.py --flagfile="$STAGE2_FLAGS" \
  --dataset_dir="$OUTPUT_DIR/records" --train_split=pseudo --seed="$SEED" \
  --train_logdir="$OUTPUT_DIR/stage2" ${retrain_flags[@]+"${retrain_flags[@]}"} \
  ${train_flags[@]+"${train_flags[@]}"}

evaluate 6_retrained "$OUTPUT_DIR/stage2" ${prediction_flags[@]+"${prediction_flags[@]}"}
if [ "$DENSE_CRF" = true ]; then
  evaluate 6_retrained_crf "$OUTPUT_DIR/stage2" --dense_crf \
    ${prediction_flags[@]+"${prediction_flags[@]}"}
fi

show_results 2_hybrid 2_pseudo 6_retrained 6_retrained_crf
