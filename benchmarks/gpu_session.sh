#!/usr/bin/env bash
# What only a GPU can show, in at most eight minutes: the tests marked gpu, then the rows of benchmarks/gpu.py in order of
# value, transformers and PEFT beside them. One table and one log; a row that fails or takes too long is a line of both.
#
#     bash benchmarks/gpu_session.sh [WHEELS]
#
# from a copy of this tree on a machine with a GPU, a torch for it, and no network. WHEELS (default .whl) is a folder of
# wheels of what that Python lacks; made where there is a network, for Python 3.12 on x86-64, by
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#         --platform manylinux_2_24_x86_64 -d .whl torchao==0.18.0 omegaconf==2.4.0 bitsandbytes==0.50.2
#
# Needed are torch >= 2.10, numpy, torchao, omegaconf (PyYAML), sentencepiece, safetensors, tqdm, and for the tests pytest,
# hypothesis, transformers and peft; pytest-xdist runs them side by side. Without transformers and peft, or for QLoRA
# bitsandbytes, the peer's rows are left out.
#
#     GPU_SESSION_SECONDS=470   when to have ended: what there is no time left for is left out, and said
#     GPU_SESSION_DEVICE=cpu    the same in small, on a machine without a GPU
#     GPU_SESSION_TESTS=...     the files of tests; all that have the marker
#     GPU_SESSION_ROWS=...      lines of seconds, row, by whom, and --compile; those below
#     OUT=runs/gpu_session      where table.md and log.txt are written, anew each time
#     PYTHON=python3
set -u
wheels=$(realpath -m "${1:-.whl}") out=$(realpath -m "${OUT:-runs/gpu_session}")
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3} device=${GPU_SESSION_DEVICE:-cuda} budget=${GPU_SESSION_SECONDS:-470}
table=$out/table.md log=$out/log.txt work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
: >"$log"
small=()
[ "$device" = cpu ] && small=(--device cpu --size tiny --steps 1)

say() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$log"; }
has() { "$python" -c "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))" "$@"; }

# attempt SECONDS COMMAND...: runs it for at most so long, its output in $work/output and the log
attempt() {
    local limit=$1 left=$((budget - SECONDS))
    shift
    ((limit > left)) && limit=$left
    if ((limit < 5)); then
        echo "no time left" >"$work/output"
        return 1
    fi
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$work/output" 2>&1
    local code=$?
    cat "$work/output" >>"$log"
    ((code == 124 || code == 137)) && echo "ended after $limit s" >>"$work/output"
    return $code
}

# row SECONDS NAME BY [--compile]: a line of the table
row() {
    local limit=$1 name=$2 by=$3
    shift 3
    if attempt "$limit" "$python" benchmarks/gpu.py --rows "$name" --by "$by" --bare ${small[@]+"${small[@]}"} "$@"; then
        grep '^|' "$work/output" >>"$table"
    else
        local why
        why=$(tail -n 1 "$work/output" | cut -c1-120 | tr '|' ' ')
        echo "| $name${*:+, compiled} | $by | | $why | | | | | |" >>"$table"
    fi
    say "$(tail -n 1 "$table")"
}

export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TORCHAO_FORCE_SKIP_LOADING_SO_FILES=1
if compgen -G "$wheels/*.whl" >/dev/null; then
    say "installing $(ls "$wheels" | tr '\n' ' ')"
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" \
        "$wheels"/*.whl >>"$log" 2>&1 || say "the wheels could not be installed; see $log"
    PYTHONPATH=$PYTHONPATH:$work/site
fi
if ! has torch torchao omegaconf sentencepiece safetensors; then
    say "torch, torchao, omegaconf, sentencepiece or safetensors is missing: put its wheel into $wheels"
    exit 1
fi

say "tests marked gpu"
files=${GPU_SESSION_TESTS:-$(grep -rl --include='test_*.py' 'mark\.gpu' tests)}
workers=()
[ "$device" != cpu ] && has xdist && workers=(-n 6)
# shellcheck disable=SC2086
attempt 200 "$python" -m pytest -m gpu -vv -p no:cacheprovider -rfE ${workers[@]+"${workers[@]}"} $files
tests=$(tail -n 1 "$work/output" | sed 's/^=* *//; s/ *=*$//')
say "$tests"
{
    echo "\`pytest -m gpu\`: $tests"
    grep '^\(FAILED\|ERROR\)' "$work/output" | sed 's/^/- /'
    echo
} >"$table"

# the head of the table: the GPU, what a large product reaches on it, and what torchtune has published
attempt 60 "$python" benchmarks/gpu.py --head ${small[@]+"${small[@]}"} || cat "$work/output"
cat "$work/output" >>"$table"
while read -r limit name by flags; do
    if [ "$by" = peft ]; then
        has transformers peft || continue
        [[ $name != *qlora* ]] || has bitsandbytes || continue
    fi
    # shellcheck disable=SC2086
    row "$limit" "$name" "$by" $flags </dev/null
done <<<"${GPU_SESSION_ROWS:-75 8b-qlora ours
75 8b-qlora peft
90 8b-qlora ours --compile
60 7b-qlora ours
60 8b-lora ours
60 8b-lora peft
60 7b-qlora-long ours
60 7b-qlora-long-lean ours
60 7b-qlora-lean ours
60 8b-qlora-kept ours
60 7b-lora-long ours}"
say "wrote $table and $log"
cat "$table"
