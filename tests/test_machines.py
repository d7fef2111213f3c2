"""The imitated machines do differ from this one: in the last bits, and only there."""

import json
import subprocess
import sys

import machines
import pytest

PROBE = """
import hashlib, json, torch
x = torch.linspace(-3, 3, 300 * 700).sin().reshape(300, 700) * 2
results = {"product": x @ x.T, "exp": x.exp(), "tanh": x.tanh(), "log1p": x.abs().log1p()}
results["softplus"] = torch.nn.functional.softplus(x)
told = {k: [hashlib.sha256(v.numpy().tobytes()).hexdigest(), v.double().norm().item()] for k, v in results.items()}
told["capability"] = torch.backends.cpu.get_cpu_capability()
told["threads"] = torch.get_num_threads()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    """{machine: {operation: [hash, norm], ...}}; None is this machine."""
    found = {}
    for name in (None, *machines.MACHINES):
        command = [sys.executable, "-c", PROBE]
        done = subprocess.run(
            command, env=machines.environment(name), capture_output=True, text=True, check=True, timeout=120
        )
        found[name] = json.loads(done.stdout)
    return found


def different(a, b):
    return {k for k in a if k not in ("capability", "threads") and a[k][0] != b[k][0]}


def test_pytorchs_own_loops_follow(told):
    assert told["baseline"]["capability"] == "DEFAULT"
    if told[None]["capability"] == "DEFAULT":
        pytest.skip("this processor has no more than the baseline")
    assert told["avx2"]["capability"] == "AVX2"
    assert {"log1p", "softplus"} & different(told["baseline"], told[None])


def test_products_of_matrices_follow(told):
    if told[None]["capability"] == "DEFAULT":
        pytest.skip("this processor has no more than the baseline")
    assert "product" in different(told["baseline"], told[None])
    if told[None]["capability"] == "AVX512":
        # PyTorch's loops differ; the products do where MKL took AVX-512, which it does on Intel's processors.
        assert different(told["avx2"], told[None])


def test_one_thread_is_one(told):
    assert told["one thread"]["threads"] == 1


def test_they_differ_in_the_last_bits_alone(told):
    for name, results in told.items():
        for key in different(results, told[None]):
            assert results[key][1] == pytest.approx(told[None][key][1], rel=1e-6), (name, key)


def test_an_unknown_machine_is_refused(capsys):
    assert machines.main(["z80"]) == 2
    assert "unknown machine 'z80': expected some of ['baseline', 'avx2', 'one thread']" in capsys.readouterr().err
