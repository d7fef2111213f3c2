#!/usr/bin/env bash
# First minutes on a card (about 260 s): raw rates, the build, the tests that only a card can fail, first step times.
cd "$(dirname "$0")/../.." && source bench/gpu/common.sh || exit
{
  at card
  card
  build_native &
  build=$!
  at rates
  nvcc -O3 -std=c++17 -gencode="arch=compute_$architecture,code=sm_$architecture" -o "$OUT/rates" bench/gpu/rates.cu && "$OUT/rates"
  for loss in csq dpn dsh dhn dbdh dtsh lcdsh dch mdsh shcir; do
    timeout 140 python3 -m bench.step.device --warm $loss --losses $loss >>"$OUT/warm.txt" 2>&1 &
  done
  wait $build
  at built
  tail -n 3 "$OUT/build.txt"
  python3 -m nhl_fast.native
  at "native tests"
  timeout 60 $pytest tests/test_native_cuda.py -k "device or refused" -n 7 >"$OUT/native.txt" 2>&1
  told native
  at "kernel tests"
  timeout 110 $pytest tests/triton --ignore tests/triton/test_aot.py -m "not slow" -n 12 --timeout 100 \
    -k "cuda_graph or half_precision or same_bits or other_losses or lengths or extreme or options or gradients or step" \
    >"$OUT/triton.txt" 2>&1
  told triton
  at steps
  timeout 85 python3 -m bench.gpu.check --parts ceilings,steps --budget 75
  at end
} 2>&1 | tee "$OUT/log.txt"
