#!/usr/bin/env bash
# Run the tests and the benchmarks that need a GPU, in at most eight minutes, and print their figures as Markdown.
#   bash scripts/gpu_figures.sh [WHEELS] > figures.md
# WHEELS is a folder of wheels for a machine without a package registry. SIZE=tiny tries the script on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ $# -gt 0 ]; then
    $python -m pip install --quiet --no-index --find-links "$1" -e ".[quantization]" pytest || exit 1
fi
model=(--layers 24 --hidden 896 --vocabulary 150000 --pairs 4)    # 0.58B parameters, random
lengths=(1024 4096) steps=6
if [ "${SIZE:-}" = tiny ]; then
    model=(--layers 2 --hidden 64 --vocabulary 1000 --pairs 2) lengths=(64) steps=2
fi

echo "# GPU figures, $(date -u +%Y-%m-%d)"
$python - <<'END'
import torch, transformers, trl
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"\n{device}, torch {torch.__version__}, transformers {transformers.__version__}, TRL {trl.__version__}\n")
END
echo '## Tests'
echo '```'
timeout 150 $python -m pytest -q -m gpu tests -p no:cacheprovider 2>&1 | tail -4
echo '```'
echo '## Time of a step over DPO, and tokens per second without padding'
timeout 210 $python scripts/benchmark.py "${model[@]}" --train full lora qlora --tokens "${lengths[@]}" --steps $steps \
    --languages 12 2> /dev/null
echo '## Peak memory over DPO'
timeout 120 $python scripts/benchmark.py "${model[@]}" --train lora --tokens "${lengths[@]: -1}" --steps 2 \
    --memory --rounds 1 2> /dev/null
