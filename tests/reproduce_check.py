"""make reproduce, tiny: something is learnt, and a run that is killed again and again ends with the same results.

Runs in the repository's root and finds the programs in T2L_BIN. Both runs go at once, on one thread each.
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time


def start(out):
    return subprocess.Popen([sys.executable, "tools/demo/reproduce.py", "--tiny", "--threads", "1", "--bin", os.environ["T2L_BIN"],
                             "--out", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, run):
    while not os.path.exists(path) and run.poll() is None:
        time.sleep(0.02)


def finished(run):
    stdout, stderr = run.communicate()
    if run.returncode:
        sys.exit(f"{stdout}{stderr}")
    return stdout


def results(out):
    with open(f"{out}/results.json") as f:
        r = json.load(f)
    assert r.pop("times")
    return r


def main():
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = f"{folder}/whole", f"{folder}/cut"
        first = start(whole)
        # Killed in a training with a checkpoint, in one without, and between.
        for what in ("0/base/checkpoints/step_700", "0/sft-L/metrics.jsonl", "0/scores/oracles"):
            run = start(cut)
            wait_for(f"{cut}/{what}", run)
            assert run.poll() is None, "was through before it could be killed"
            run.send_signal(signal.SIGKILL)
            run.communicate()
        finished(start(cut))
        table = finished(first)
        r = results(whole)
        assert results(cut) == r, "the killed run's results differ"
        page = open(f"{whole}/index.html").read()
        assert "<svg" in page and "<script" not in page

        # A finished run only prints.
        begin = time.monotonic()
        assert finished(start(whole)) == table and time.monotonic() - begin < 5

        seen = {method: row["seen"]["mean"] for method, row in r["table"].items()}
        loss = r["training"]["0/base"]["loss"]
        assert loss[1] < loss[0] / 2, loss
        print(table)
        assert seen["base-described"] > seen["base"] + 3, seen
        assert seen["sft-L"] > seen["base"] + 3, seen
        assert seen["sft-L"] > seen["sft-L-other"] + 3, seen


main()
