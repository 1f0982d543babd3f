# What the recipes of several stages share; each sources it after its parameters.
#
#   PARAMETERS=(DATASET_DIR ...)   names of the variables that a run depends on
#   FLAGFILES=(STAGE1_FLAGS ...)   those of them that are files of flags
#   LATE=(CROP ...)                those that the first training does not use
#   SPLITS=(LABELLED_SPLIT ...)    those that name splits of DATASET_DIR
#   begin                          opens OUTPUT_DIR, or stops where it was begun with others
#   check_flags PROGRAM ...        stops where a flag of a later step is wrong
#   step NAME COMMAND ...          runs a command, or passes it over where it was finished before
#   evaluate NAME CHECKPOINTS ...  a step: eval.py on VAL_SPLIT, with further flags
#   show_results NAME ...          prints the mIoU of such steps, of zero-label runs also by group
#
# A signal is handed to the running program, which saves; then the recipe stops too.

stop() {
  echo "error: $1" >&2
  exit 2
}

# Always as SIGTERM, because what bash starts in the background may ignore SIGINT.
child= stopped=
forward() {
  stopped=$1
  [ -z "$child" ] || kill -s TERM "$child" 2>/dev/null || true
}
trap 'forward 143' TERM
trap 'forward 130' INT

run() {
  echo
  echo "\$ $*"
  "$@" &
  child=$!
  local code=0
  wait "$child" || code=$?
  # A trapped signal ends the first wait; the program may still be saving.
  while kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  child=
  [ -z "$stopped" ] || exit "$stopped"
  [ "$code" -eq 0 ] || exit "$code"
}

step() {
  local name=$1
  shift
  if [ -e "$OUTPUT_DIR/done/$name" ]; then
    echo "== $name: done before =="
    return
  fi
  echo "== $name =="
  local began=$SECONDS
  run "$@"
  echo "== $name: $((SECONDS - began)) s =="
  touch "$OUTPUT_DIR/done/$name"
}

# Prints the parameters that may no longer be changed: those that finished steps, or a training that
# was begun, have used.
locked() {
  local name used=()
  if compgen -G "$OUTPUT_DIR/done/[2-9]*" >/dev/null; then
    used=("${PARAMETERS[@]}")
  elif compgen -G "$OUTPUT_DIR/done/*" >/dev/null || [ -e "$OUTPUT_DIR/stage1" ]; then
    for name in "${PARAMETERS[@]}"; do
      [[ " ${LATE[*]} " == *" $name "* ]] || used+=("$name")
    done
  fi
  for name in ${used[@]+"${used[@]}"}; do
    grep -E "^(content of )?$name[=:]" "$1" || true
  done
}

begin() {
  local name new=$OUTPUT_DIR/parameters.new old=$OUTPUT_DIR/parameters.txt
  for name in "${FLAGFILES[@]}"; do
    [ -f "${!name}" ] || stop "no such flagfile: ${!name} ($name)"
  done
  if [ -n "$DATASET_DIR" ]; then
    [ -d "$DATASET_DIR" ] || stop "no such folder: DATASET_DIR=$DATASET_DIR
  next: paths are relative to $PWD; give an absolute one"
    for name in "${SPLITS[@]}"; do
      [ -z "${!name}" ] || compgen -G "$DATASET_DIR/${!name}-*" >/dev/null ||
        stop "$name=${!name}: no records of this split in DATASET_DIR=$DATASET_DIR"
    done
  fi
  mkdir -p "$OUTPUT_DIR/done"
  {
    for name in "${PARAMETERS[@]}"; do echo "$name=${!name}"; done
    for name in "${FLAGFILES[@]}"; do echo "content of $name: $(cksum <"${!name}")"; done
  } >"$new"
  if [ -e "$old" ]; then
    local changes
    changes=$(diff <(locked "$old") <(locked "$new") | grep '^[<>]') || true
    [ -z "$changes" ] || {
      rm -f "$new"
      stop "OUTPUT_DIR=$OUTPUT_DIR was begun with other parameters (< then, > now):
$changes
  next: choose another OUTPUT_DIR, or delete that one to start anew"
    }
  fi
  mv "$new" "$old"
}

check_flags() {
  "$PYTHON" "$@" --only_check_args || exit
}

evaluate() {
  local name=$1 checkpoints=$2
  shift 2
  step "$name" "$PYTHON" eval.py --checkpoint_dir="$checkpoints" --dataset_dir="$DATASET_DIR" \
    --eval_split="$VAL_SPLIT" --eval_crop_size="$CROP" --eval_batch_size=8 \
    --eval_logdir="$OUTPUT_DIR/$name" --max_number_of_evaluations=1 "$@"
}

show_results() {
  local name metrics
  echo
  echo "mIoU on $VAL_SPLIT:"
  for name in "$@"; do
    metrics=$OUTPUT_DIR/$name/metrics.json
    [ ! -e "$metrics" ] || "$PYTHON" -c 'import json, sys
name, path = sys.argv[1:]
metrics = json.load(open(path))
groups = ("seen", "unseen", "harmonic") if "zero_label" in metrics else ()
scores = ["%.3f" % metrics["miou"]]
for group in groups:
    value = metrics["zero_label"]["generalised"]["mean_iou"][group]
    scores.append(group + (" -" if value is None else " %.3f" % value))
print("  %-16s %s" % (name, "  ".join(scores)))' "$name" "$metrics"
  done
}
