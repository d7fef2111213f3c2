#!/usr/bin/env bash
# About 105 s on a card: what changed since the last call: tests, profile, scan, tile sizes of the products.
set -o pipefail
cd "$(dirname "$0")/.." || exit
: "${OUT:=build/gpu_short}"
mkdir -p "$OUT"
export OUT PYTHONUNBUFFERED=1 PYTHONPATH=$PWD:$PWD/bench TORCHINDUCTOR_COMPILE_THREADS=1
pytest="python3 -m pytest -v -o addopts= -p no:cacheprovider -p instant_failures --tb=short"
at() { echo "== $1 at $SECONDS s"; }
told() { echo "$1: $(grep -c PASSED "$OUT/$1.txt") passed"; grep -E "^E  |FAILED|passed|failed" "$OUT/$1.txt" | sort | uniq -c | sort -rn | head -n 25; }
{
  at card
  NHL_FAST_CUDA=1 NHL_FAST_CUDA_ARCHITECTURES=90 timeout 60 python3 -m nhl_fast.native build >"$OUT/build.txt" 2>&1 &
  build=$!
  for part in 0 1 2 3 4 5 6 7; do
    OMP_NUM_THREADS=1 timeout 55 python3 bench/gpu_tiles.py --only product,softmax --warm $part --of 8 >/dev/null 2>&1 &
  done
  OMP_NUM_THREADS=1 timeout 52 $pytest tests/triton/test_step.py tests/triton/test_projection.py tests/triton/test_weighting.py \
    -m "not slow" -n 6 -k "not opcheck and not compiles" >"$OUT/triton.txt" 2>&1 &
  wait $build
  at built
  tail -n 1 "$OUT/build.txt"
  OMP_NUM_THREADS=2 timeout 24 $pytest tests/test_native_cuda.py -k device -n 4 >"$OUT/native.txt" 2>&1
  told native
  wait
  at tests
  told triton
  at profile
  timeout 25 python3 bench/gpu_profile.py 2>&1 | grep -v -i warn
  at scan
  timeout 16 python3 bench/gpu_scan.py --seconds 9 --units mma
  at tiles
  timeout 16 python3 bench/gpu_tiles.py --only product,softmax --seconds 14 --out "$OUT/tiles.jsonl" >"$OUT/tiles.txt" 2>&1
  tail -n 1 "$OUT/tiles.txt"
  at end
} 2>&1 | tee "$OUT/log.txt"
