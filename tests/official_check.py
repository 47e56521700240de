"""The official loader takes hypernetworks that --export-official wrote, and generates the adapters that t2l-gen does.

    python tests/official_check.py OFFICIAL_CHECKOUT FOLDER...

A folder holds the export, `base/config.json`, and `embedding.safetensors` in the encoder's place. Base weights are random.
Needs torch, transformers 4.46, peft 0.15 and the checkout of SakanaAI/text-to-lora.
"""
import json, os, subprocess, sys, tempfile, types

GEN = os.path.abspath(os.environ.get("T2L_BIN", "build/bin")) + "/t2l-gen"


def order_of(folder):
    args = open(folder + "/args.yaml").read()
    return json.loads(next(l for l in args.splitlines() if l.startswith("target_modules:")).split(":", 1)[1])


def hash_seed(names):
    """A PYTHONHASHSEED under which the official code's set of module names has the order of training."""
    code = f"n = {names}; assert all(list(set(x)) == n for x in (n, n[::-1], list(set(n))))"
    return next(s for s in map(str, range(20000)) if not subprocess.run([sys.executable, "-S", "-c", code], env={"PYTHONHASHSEED": s},
                                                                        stderr=subprocess.DEVNULL).returncode)


def stub(name, **attributes):
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    module.__path__ = []
    sys.modules[name] = module


def check(official, folder):
    os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    import accelerate, peft, torch, transformers
    from safetensors.torch import load_file
    nothing = lambda *a, **k: None
    stub("datasets", load_dataset=nothing, Dataset=object)
    stub("wandb", log=nothing, watch=nothing, unwatch=nothing, init=nothing, run=None)
    stub("inflect", engine=nothing)
    stub("torchmetrics"), stub("torchmetrics.text"), stub("torchmetrics.text.rouge", ROUGEScore=object)
    sys.path.insert(0, official + "/src")
    stub("hyper_llm_modulator.utils.eval_hypermod", eval_hypermod_checkpoint=nothing, eval_lora=nothing)
    import hyper_llm_modulator.hyper_modulator as hm

    os.chdir(folder)
    state = torch.load("hypermod.pt", weights_only=True)
    raw = load_file("embedding.safetensors")["embedding"]

    def base(path, peft_config, **_):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(path))
        return peft.PeftModel(model, peft_config), None

    sized = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=raw.shape[1]), eval=nothing)
    hm.get_model_and_tokenizer = base
    hm.get_emb_model_and_fns = lambda name, device: (sized, None, None, None)
    args, net, model, *_ = hm.load_hypermod_checkpoint("./hypermod.pt", "cpu")
    assert list(net.module_to_int) == order_of("."), (list(net.module_to_int), order_of("."))
    # The official loader is not strict: nothing may be missing, left over or out of order.
    assert list(net.state_dict()) == list(state), set(net.state_dict()) ^ set(state)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())

    layers = torch.arange(len(hm.get_layers(model)))
    with tempfile.TemporaryDirectory() as out, torch.no_grad():
        subprocess.run([GEN, "--hypernet", ".", "--embedding", "embedding.safetensors", "--out", out, "--device", "cpu", "--quiet"], check=True)
        worst = 0
        for i in range(len(raw)):
            task = raw[i:i + 1]
            if not args.use_one_hot_task_emb:
                task = torch.nn.functional.normalize(task) * raw.shape[1] ** 0.5
            want = net.gen_lora(layers, net.task_encoder(task)["encoded_task_emb"])
            got = load_file(f"{out}/{i}/adapter_model.safetensors" if len(raw) > 1 else f"{out}/adapter_model.safetensors")
            assert set(want) == set(got)
            worst = max([worst] + [((got[k] - v).norm() / v.norm()).item() for k, v in want.items()])
    print(f"{os.path.basename(os.getcwd())}: {len(state)} tensors, {len(raw)} adapters, worst relative L2 {worst:.1e}")
    assert worst <= 5e-6


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        check(*sys.argv[2:])
        sys.exit(0)
    for case in sys.argv[2:]:
        environment = dict(os.environ, PYTHONHASHSEED=hash_seed(order_of(case)))
        if subprocess.run([sys.executable, "-W", "ignore", __file__, "--one", sys.argv[1], case], env=environment).returncode:
            sys.exit(1)
