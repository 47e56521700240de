"""PEFT loads the adapters that t2l-gen writes, and a transformers model gives the logits that it gives with the official files.

    python tests/peft_check.py GOLDEN_FOLDER...

Needs torch, transformers and peft (T2L_PYTHON names an interpreter that has them); without them it says so and exits with 77.
"""
import glob, json, os, shutil, subprocess, sys, tempfile

try:
    import torch, transformers, peft
    from safetensors.torch import load_file, save_file
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

GEN = os.environ.get("T2L_BIN", "build/bin") + "/t2l-gen"
transformers.logging.set_verbosity_error()


def logits(base, adapter):
    torch.manual_seed(1)  # the same base weights each time
    config = transformers.AutoConfig.from_pretrained(base)
    config.vocab_size = 40
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = peft.PeftModel.from_pretrained(model, adapter)
    ids = torch.arange(24).reshape(2, 12) * 7 % 40
    with torch.no_grad():
        adapted = model(ids).logits
        with model.disable_adapter():
            return adapted, model(ids).logits


def main(roots):
    checked, worst = 0, 0.0
    for case in sorted(d for root in roots for d in glob.glob(root + "/*") if os.path.exists(d + "/hypermod.pt")):
        with tempfile.TemporaryDirectory() as tmp:
            subprocess.run([GEN, "--hypernet", case, "--embedding", case + "/embedding.safetensors", "--out", tmp + "/ours", "--device", "cpu",
                            "--quiet"], check=True, stderr=subprocess.DEVNULL)
            official = tmp + "/official"
            shutil.copytree(case + "/expected/0", official, copy_function=shutil.copyfile)
            os.chmod(official, 0o755)
            shutil.copyfile(case + "/adapter_config.json", official + "/adapter_config.json")
            (want, plain), (got, _) = logits(case + "/base", official), logits(case + "/base", tmp + "/ours/0")
            # What rounding itself costs: some of these random adapters drive the tiny model into saturation.
            weights = load_file(official + "/adapter_model.safetensors")
            save_file({k: v * (1 + 1e-6 * torch.randn_like(v)) for k, v in weights.items()}, official + "/adapter_model.safetensors")
            rounded, _ = logits(case + "/base", official)
        error, rounding = (((x - want).norm() / want.norm()).item() for x in (got, rounded))
        effect = ((want - plain).norm() / plain.norm()).item()
        assert effect > 1e-3, f"{case}: the adapter changes the logits by {effect:.1e} only, which tests nothing"
        assert rounding < 1e-2 * effect, f"{case}: rounding hides the adapter"
        # 1e-5: the adapters themselves may differ by 5e-6.
        assert error < max(1e-5, 3 * rounding), f"{case}: logits differ by {error:.1e} relative L2, rounding the adapter by {rounding:.1e}"
        worst, checked = max(worst, error), checked + 1
    print(f"{checked} adapters, worst relative L2 of the logits {worst:.1e}")
    assert checked


main(sys.argv[1:])
