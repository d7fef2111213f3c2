#!/usr/bin/env bash
# About 290 s on a card: device tests, the scan by each unit, where a step's time goes, other tile sizes.
# SWEEPS: some kernels of bench.step.tiles, separated by commas; all of them if it is empty.
cd "$(dirname "$0")/../.." && source bench/gpu/common.sh || exit
sweeps=(${SWEEPS:+--only "$SWEEPS"})
{
  at card
  card
  build_native &
  build=$!
  for part in 0 1 2 3 4 5 6 7 8 9; do
    OMP_NUM_THREADS=1 timeout 165 python3 -m bench.step.tiles "${sweeps[@]}" --warm $part --of 10 >/dev/null 2>&1 &
  done
  OMP_NUM_THREADS=1 timeout 140 $pytest tests/triton --ignore tests/triton/test_aot.py -m "not slow" -n 6 --timeout 100 \
    -k "cuda_graph or fixed or half_precision or lengths or slices or options or step or launches" >"$OUT/triton.txt" 2>&1 &
  triton=$!
  OMP_NUM_THREADS=1 timeout 140 $pytest tests/test_graphs.py -n 2 --timeout 100 >"$OUT/graphs.txt" 2>&1 &
  graphs=$!
  wait $build
  at built
  tail -n 3 "$OUT/build.txt"
  OMP_NUM_THREADS=2 timeout 110 $pytest tests/test_native_cuda.py -k "device or refused" -n 6 >"$OUT/native.txt" 2>&1
  told native
  wait $triton $graphs
  at tests
  told triton
  told graphs
  wait
  at scan
  timeout 60 python3 -m bench.search.scan --seconds 45
  at profile
  timeout 40 python3 -m bench.gpu.profile 2>&1 | grep -v -i warn
  at tiles
  timeout 90 python3 -m bench.step.tiles "${sweeps[@]}" --seconds 80 --out "$OUT/tiles.jsonl" >"$OUT/tiles.txt" 2>&1
  tail -n 3 "$OUT/tiles.txt"
  at end
} 2>&1 | tee "$OUT/log.txt"
