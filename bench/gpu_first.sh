#!/usr/bin/env bash
# First minutes on a card (about 260 s): raw rates, the build, the tests that only a card can fail, first step times.
# OUT: the folder for results. .card/scan, if it is there: the probe of raw rates, built beforehand.
set -o pipefail
cd "$(dirname "$0")/.." || exit
: "${OUT:=build/gpu_first}"
mkdir -p "$OUT"
export OUT PYTHONUNBUFFERED=1 PYTHONPATH=$PWD:$PWD/bench TORCHINDUCTOR_COMPILE_THREADS=1
pytest="python3 -m pytest -v -o addopts= -p no:cacheprovider -p instant_failures"
at() { echo "== $1 at $SECONDS s"; }
{
  at card
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.sm,clocks.mem --format=csv
  major_minor=$(python3 -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  NHL_FAST_CUDA=1 NHL_FAST_CUDA_ARCHITECTURES=$major_minor timeout 150 python3 -m nhl_fast.native build >"$OUT/build.txt" 2>&1 &
  build=$!
  at rates
  [ -x .card/scan ] && timeout 40 .card/scan
  for loss in csq dpn dsh dhn dbdh dtsh lcdsh dch mdsh shcir; do
    timeout 140 python3 bench/gpu_steps.py --warm $loss --losses $loss >"$OUT/warm_$loss.txt" 2>&1 &
  done
  wait $build
  at built
  tail -n 3 "$OUT/build.txt"
  python3 -m nhl_fast.native
  at "native tests"
  timeout 60 $pytest tests/test_native_cuda.py -k on_the_device -n 7 --tb=short >"$OUT/native.txt" 2>&1
  grep -E "passed|failed|^E  |FAILED" "$OUT/native.txt" | tail -n 30
  at "kernel tests"
  timeout 110 $pytest tests/triton --ignore tests/triton/test_aot.py -m "not slow" -n 12 --tb=short --timeout 100 \
    -k "cuda_graph or half_precision or same_bits or other_losses or lengths or extreme or options or gradients or values_and_deltas or step" \
    >"$OUT/triton.txt" 2>&1
  echo "$(grep -c PASSED "$OUT/triton.txt") passed"
  grep -E "^E  |FAILED|passed|failed" "$OUT/triton.txt" | sort | uniq -c | sort -rn | head -n 60
  tail -n 2 "$OUT"/warm_*.txt
  at steps
  timeout 85 python3 bench/gpu_check.py --parts ceilings,steps --budget 75
  at end
} 2>&1 | tee "$OUT/log.txt"
