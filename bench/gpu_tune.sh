#!/usr/bin/env bash
# About 290 s on a card: device tests, the scan by each unit, where a step's time goes, other tile sizes.
# OUT: the folder for results.
set -o pipefail
cd "$(dirname "$0")/.." || exit
: "${OUT:=build/gpu_tune}"
mkdir -p "$OUT"
export OUT PYTHONUNBUFFERED=1 PYTHONPATH=$PWD:$PWD/bench TORCHINDUCTOR_COMPILE_THREADS=1
pytest="python3 -m pytest -v -o addopts= -p no:cacheprovider -p instant_failures --tb=short"
at() { echo "== $1 at $SECONDS s"; }
told() { echo "$1: $(grep -c PASSED "$OUT/$1.txt") passed"; grep -E "^E  |FAILED|passed|failed" "$OUT/$1.txt" | sort | uniq -c | sort -rn | head -n 30; }
{
  at card
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader
  major_minor=$(python3 -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  NHL_FAST_CUDA=1 NHL_FAST_CUDA_ARCHITECTURES=$major_minor timeout 150 python3 -m nhl_fast.native build >"$OUT/build.txt" 2>&1 &
  build=$!
  for part in 0 1 2 3 4 5 6 7 8 9; do
    OMP_NUM_THREADS=1 timeout 165 python3 bench/gpu_tiles.py --warm $part --of 10 >/dev/null 2>&1 &
  done
  OMP_NUM_THREADS=1 timeout 140 $pytest tests/triton --ignore tests/triton/test_aot.py -m "not slow" -n 6 --timeout 100 \
    -k "cuda_graph or fixed or half_precision or lengths or slices or options or step or launches" >"$OUT/triton.txt" 2>&1 &
  triton=$!
  OMP_NUM_THREADS=1 timeout 140 $pytest tests/test_graphs.py -n 2 --timeout 100 >"$OUT/graphs.txt" 2>&1 &
  graphs=$!
  wait $build
  at built
  tail -n 3 "$OUT/build.txt"
  OMP_NUM_THREADS=2 timeout 110 $pytest tests/test_native_cuda.py -k device -n 6 >"$OUT/native.txt" 2>&1
  told native
  wait $triton $graphs
  at tests
  told triton
  told graphs
  wait
  at scan
  timeout 60 python3 bench/gpu_scan.py --seconds 45
  at profile
  timeout 40 python3 bench/gpu_profile.py 2>&1 | grep -v Warn
  at tiles
  timeout 90 python3 bench/gpu_tiles.py --seconds 80 --out "$OUT/tiles.jsonl" >"$OUT/tiles.txt" 2>&1
  tail -n 3 "$OUT/tiles.txt"
  at end
} 2>&1 | tee "$OUT/log.txt"
