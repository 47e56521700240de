"""Makes tests/golden/hypernet: tiny hypernetworks as the official Text-to-LoRA code saves them, and the adapters its gen_lora
makes of them.

    python tools/make_golden_hypernet.py --official CHECKOUT [--out tests/golden/hypernet]

CHECKOUT is SakanaAI/text-to-lora at 8ba7749. Needs torch 2.4, transformers 4.46, peft 0.15, safetensors, pyyaml; CPU, a minute.
The class, its loader and its writers are the official ones; the base model has random weights and only its shapes matter. The
module order is the iteration order of a Python set, so each case runs in a process with a hash seed that gives its order.
"""
import argparse, importlib.machinery, json, math, os, subprocess, sys, types

R, LAYERS, HEADS, KV, HEAD_DIM, INTER, LATENT, HEAD_IN, EMB, TASKS = 3, 2, 3, 1, 4, 14, 12, 9, 7, 2
VARIANTS = dict(L={}, M=dict(shared_AB_head=True), S=dict(shared_AB_head=True, autoreg_gen=True),
                Spos=dict(shared_AB_head=True, autoreg_gen=True, learnable_pos_emb=True),
                AR=dict(autoreg_gen=True), ARpos=dict(autoreg_gen=True, learnable_pos_emb=True))
CASES = {  # variant, training task, official flags, modules in their order
    "L_sft": ("L", "sft", {}, ["q_proj", "v_proj"]),
    "L_sft_reversed": ("L", "sft", {}, ["v_proj", "q_proj"]),
    "M_sft_offset": ("M", "sft", dict(mt_lora_path="some/adapter"), ["q_proj", "v_proj"]),
    "M_dense": ("M", "recon", dict(factorized=False, pred_z_score=False, delta_w_scaling=400), ["v_proj", "q_proj"]),
    "S_recon_z": ("S", "recon", dict(factorized=True, pred_z_score=True), ["q_proj", "v_proj"]),
    "Spos_sft": ("Spos", "sft", {}, ["down_proj", "q_proj"]),
    "AR_recon": ("AR", "recon", dict(factorized=True, pred_z_score=False), ["q_proj", "v_proj"]),
    "ARpos_sft": ("ARpos", "sft", {}, ["up_proj", "v_proj"]),
}


def hash_seed(order):
    """A PYTHONHASHSEED under which set(order) iterates in that order, however it was filled."""
    code = f"n = {order}; print(list(set(n)) == n and list(set(n[::-1])) == n)"
    for seed in range(1, 10000):
        if b"True" in subprocess.check_output([sys.executable, "-S", "-c", code], env={"PYTHONHASHSEED": str(seed)}):
            return seed


def make(name, official, out):
    variant, task, flags, modules = CASES[name]
    for absent in ("wandb", "torchmetrics", "torchmetrics.text", "torchmetrics.text.rouge", "inflect"):  # imported, not used here
        m = sys.modules[absent] = types.ModuleType(absent)
        m.__spec__ = importlib.machinery.ModuleSpec(absent, None)
        m.ROUGEScore = m.engine = lambda **_: None
        m.run = None
    sys.path.insert(0, official + "/src")
    import torch, transformers, yaml
    import hyper_llm_modulator.hyper_modulator as hm
    from hyper_llm_modulator.utils import get_peft_config
    from peft import get_peft_model
    from safetensors.torch import save_file

    torch.manual_seed(sum(map(ord, name)))
    torch.set_grad_enabled(False)
    hidden = HEADS * HEAD_DIM
    config = transformers.MistralConfig(vocab_size=16, hidden_size=hidden, intermediate_size=INTER, num_hidden_layers=LAYERS,
                                        num_attention_heads=HEADS, num_key_value_heads=KV, head_dim=HEAD_DIM)
    folder = f"{out}/{name}"
    os.makedirs(folder + "/base", exist_ok=True)
    json.dump({k: v for k, v in config.to_dict().items() if k in (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")},
        open(folder + "/base/config.json", "w"), indent=1)
    peft_config = get_peft_config(f"{folder}/base", "lora", target_modules=list(modules), r=R, lora_alpha=2 * R)
    model = get_peft_model(transformers.AutoModelForCausalLM.from_config(config), peft_config)
    peft_config.base_model_name_or_path = "base"
    assert list(peft_config.target_modules) == modules, peft_config.target_modules

    args = dict(training_task=task, pred_z_score=task == "sft", mt_lora_path=None, target_modules=modules, use_one_hot_task_emb=False,
                train_ds_names=["a", "b"], shared_AB_head=False, autoreg_gen=False, learnable_pos_emb=False, learnable_AB_offset=False,
                hypernet_latent_size=LATENT, head_in_size=HEAD_IN, factorized=False, delta_w_scaling=10000,
                model_dir="base", emb_model="Alibaba-NLP/gte-large-en-v1.5", save_freq=10**100, encoder_type="linear", notes=None)
    args |= VARIANTS[variant] | flags
    net = hm.create_hypermod(argparse.Namespace(**args), "lora", "cpu", model, torch.arange(LAYERS), EMB, from_scratch=False).eval()
    for n, p in net.named_parameters():  # everything away from zero, so that it shows
        x = torch.randn(p.shape)
        fixed = n.startswith(("AB_offset", "mean_recon"))
        p.data += 0.02 + 0.02 * x.abs() if n.startswith("std_recon") else x * (0.05 if fixed else 0.2 if p.ndim == 1 else 1.2 / math.sqrt(p.shape[1]))
    torch.save(net.state_dict(), folder + "/hypermod.pt")
    yaml.safe_dump(args, open(folder + "/args.yaml", "w"))
    peft_config.save_pretrained(folder)

    raw = torch.randn(TASKS, EMB) * torch.tensor([[0.5], [20.0]])
    save_file({"embedding": raw}, folder + "/embedding.safetensors")
    for i in range(TASKS):
        e = torch.nn.functional.normalize(raw[i : i + 1]) * math.sqrt(EMB)
        lora = net.gen_lora(torch.arange(LAYERS), net.task_encoder(e)["encoded_task_emb"])
        os.makedirs(f"{folder}/expected/{i}", exist_ok=True)
        save_file(lora, f"{folder}/expected/{i}/adapter_model.safetensors")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--official", required=True)
    p.add_argument("--out", default="tests/golden/hypernet")
    p.add_argument("--case")
    a = p.parse_args()
    if a.case:
        make(a.case, os.path.abspath(a.official), os.path.abspath(a.out))
        sys.exit()
    for name, (_, _, _, modules) in CASES.items():
        subprocess.run([sys.executable, __file__, "--official", a.official, "--out", a.out, "--case", name], check=True,
                       env=os.environ | {"PYTHONHASHSEED": str(hash_seed(modules)), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
        print(name)
    json.dump({n: dict(module_order=c[3]) for n, c in CASES.items()}, open(a.out + "/cases.json", "w"), indent=1)
