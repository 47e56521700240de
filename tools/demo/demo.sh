#!/bin/bash
# make demo: the main job on made-up weights. Makes a hypernetwork in the official layout and a small BERT, turns real
# descriptions (and TASK="…", if given) into adapters, and shows what came out.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=build/bin work=build/demo
descriptions=tools/demo/descriptions.jsonl
rm -rf $work
mkdir -p $work
$bin/demo make $work $descriptions
echo "The weights in this demonstration are random: no hypernetwork was trained. The adapters have the right form and show"
echo "how descriptions move them; they will not teach a model anything."
echo
$bin/t2l-gen --hypernet $work/hypernet --info
echo
export T2L_MODELS=$work/models
$bin/t2l-gen --hypernet $work/hypernet --tasks $descriptions --out $work/adapters --device cpu
if [ -n "${TASK:-}" ]; then
  $bin/t2l-gen --hypernet $work/hypernet --task "$TASK" --out $work/adapters/your_task --device cpu
fi
$bin/demo show $work/adapters
echo
echo "Each folder of $work/adapters is a PEFT adapter: adapter_config.json, adapter_model.safetensors."
echo "With trained weights the same command gives adapters that work: t2l-gen --hypernet DIR --task \"…\" --out DIR"
