# Sourced by the scripts for a card, from the repository's root. OUT: the folder for results.
set -o pipefail
: "${OUT:=build/gpu}"
architecture=$(python3 -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null) || {
  echo "needs a CUDA device that the PyTorch of python3 sees" >&2
  exit 2
}
mkdir -p "$OUT"
export OUT PYTHONUNBUFFERED=1 PYTHONPATH=$PWD TORCHINDUCTOR_COMPILE_THREADS=1
pytest="python3 -m pytest -v -o addopts= -p no:cacheprovider -p bench.gpu.instant_failures --tb=short"
at() { echo "== $1 at $SECONDS s"; }
told() {
  echo "$1: $(grep -c PASSED "$OUT/$1.txt") passed"
  grep -E "^E  |FAILED|passed|failed" "$OUT/$1.txt" | sort | uniq -c | sort -rn | head -n 40
}
card() { nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.sm,clocks.mem --format=csv; }
build_native() {
  NHL_FAST_CUDA=1 NHL_FAST_CUDA_ARCHITECTURES=$architecture timeout 150 python3 -m nhl_fast.native build >"$OUT/build.txt" 2>&1
}
