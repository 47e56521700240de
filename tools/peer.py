"""What the peer_*.py scripts share: a model's shape, and running a benchmark that prints one JSON object."""
import json
import statistics
import subprocess

SMOLLM2 = dict(model_type="llama", hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
               intermediate_size=1536, vocab_size=49152, rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True,
               hidden_act="silu", max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
               architectures=["LlamaForCausalLM"])


def measured(command):
    """Seconds a step and peak memory in MiB."""
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    report = json.loads(out[out.index("{"):])
    return report["seconds_per_step"], report["peak_rss_mib"]


def medians(rounds):
    """Of rounds of measured(): the median of each number."""
    return [statistics.median(numbers) for numbers in zip(*rounds)]
