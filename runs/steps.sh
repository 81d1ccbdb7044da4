# What the scripts beside it are made of; they source it. Each step goes on where it was if it is stopped.
PYTHON=${PYTHON:-python}
GRIDS=recipes/evidence
RUNS=letgo-runs/evidence

# models BENCHMARK LIMIT NAME...: fine-tune the models of $GRIDS/models/NAME.yaml, and score the last, the retain model.
models() {
    benchmark=$1 limit=$2
    shift 2
    for name in "$@"; do
        [ -f "$RUNS/$name/result.json" ] || $PYTHON -m letgo unlearn "$GRIDS/models/$name.yaml"
    done
    # shellcheck disable=SC2086  (the limit is an option and its value, or nothing)
    [ -f "$RUNS/$name-scores/result.json" ] || $PYTHON -m letgo eval "$RUNS/$name" --benchmark "$benchmark" $limit \
        --output "$RUNS/$name-scores"
}

# tuned NAME...: tune the grids tune-NAME.yaml, and write down what came of it.
tuned() {
    for name in "$@"; do
        $PYTHON -m letgo sweep "$GRIDS/tune-$name.yaml" --resume
        $PYTHON -m letgo.evidence collect "$RUNS/tune-$name" --output "results/tune-$name.json"
    done
}

# settled ATTACKS SEEDS NAME: write NAME.yaml from what tune-NAME.yaml chose, where it isn't there yet. Fails where nothing
# reached the target: then there is nothing to attack.
settled() {
    [ -f "$GRIDS/$3.yaml" ] || $PYTHON -m letgo.evidence settle "$RUNS/tune-$3" --attacks "$GRIDS/$1.yaml" --seeds "$2" \
        --output "$GRIDS/$3.yaml"
}

# attacked ATTACKS FLAGS PREFIX NAME...: run the grids NAME.yaml and write results/PREFIXNAME.json; FLAGS are further ones
# of `collect`, "" for none.
attacked() {
    attacks=$1 flags=$2 prefix=$3
    shift 3
    for name in "$@"; do
        $PYTHON -m letgo sweep "$GRIDS/$name.yaml" --resume
        # shellcheck disable=SC2086  (flags are words)
        $PYTHON -m letgo.evidence collect "$RUNS/$name" --attacks "$GRIDS/$attacks.yaml" $flags \
            --output "results/$prefix$name.json"
    done
}

page() {
    $PYTHON -m letgo.evidence page results --output docs/evidence.md
}
