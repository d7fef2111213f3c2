"""The CUDA kernels: emulated on the CPU against the CPU engine, and on a real card where there is one."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from bench.kernels import resources
from nhl_fast import native
from nhl_fast.native import BuildError, builder
from nhl_fast.retrieval.hamming import hamming_distances, radius_search, search
from nhl_fast.retrieval.metrics import evaluate_retrieval
from nhl_fast.retrieval.rescore import rescore

ROOT = Path(__file__).resolve().parents[1]
EMULATION = ROOT / "tests/cuda_emulation"
CUDA = ROOT / "csrc/hamming/cuda"

try:
    COMPILER = shlex.split(builder.find_compiler())
except BuildError:
    COMPILER = None


def as_plain_cpp(source: str) -> str:
    """CUDA's launches and dynamic shared memory in the words of cuda_emulation/cuda_runtime.h."""
    source = re.sub(
        r"(\w+(?:<[^<>]*>)?)<<<(.*?)>>>\((.*?)\);",
        r"emulation::launch(\2, [=] { \1(\3); });",
        source,
        flags=re.DOTALL,
    )
    assert "<<<" not in source
    return re.sub(
        r"extern __shared__ __align__\(16\) uint32_t (\w+)\[\];",
        r"uint32_t* const \1 = emulation::dynamic_shared;",
        source,
    )


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_emulated_kernels_agree_with_the_cpu_engine(tmp_path):
    plain = []
    for path in CUDA.rglob("*.cu*"):
        copy = tmp_path / path.relative_to(CUDA)
        copy.parent.mkdir(exist_ok=True)
        if path.suffix == ".cu":
            copy = copy.with_suffix(".cpp")
            plain.append(copy)
        copy.write_text(as_plain_cpp(path.read_text()))
    program = tmp_path / "compare"
    flags = ["-std=c++17", "-O1", "-g", "-w", "-fsanitize=undefined,bounds", "-fno-sanitize-recover=all"]
    includes = [f"-I{EMULATION}", f"-I{ROOT / 'csrc'}", f"-I{CUDA}"]
    sources = [EMULATION / "compare.cpp", *plain, *builder.engine_sources(ROOT / "csrc")]
    built = subprocess.run(
        [*COMPILER, *flags, *includes, *map(str, sources), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-6000:]
    done = subprocess.run([program, "60"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "60 rounds" in done.stdout


LISTING = """
		Function : _ZN12_GLOBAL__N_112tiles_kernelINS_6BinaryELi4ELi2ELi1EEEvv
        /*0000*/                   LDG.E.CONSTANT R1, desc[UR4][R2.64] ;
        /*0010*/                   ISETP.GE.AND P0, PT, R4, R5, PT ;
        /*0020*/               @P0 BRA 0x50 ;
        /*0030*/                   LDG.E.CONSTANT R1, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.CONSTANT R6, desc[UR4][R2.64] ;
        /*0050*/                   BMMA.168256.AND.POPC R8, R12.ROW, R1.COL, R16 ;
        /*0060*/                   BMMA.168256.AND.POPC R20, R24.ROW, R1.COL, R16 ;
        /*0070*/                   BRA.DIV ~URZ, 0xd0 ;
        /*0080*/              @!P1 BRA 0xb0 ;
        /*0090*/                   POPC R30, R31 ;
        /*00a0*/                   ATOMG.E.ADD PT, R30, desc[UR4][R2.64], R30 ;
        /*00b0*/               @P2 BRA 0x10 ;
        /*00c0*/                   EXIT ;
        /*00d0*/                   BRA 0x80 ;
"""


def test_the_loop_that_finds_nothing_is_read_off_the_machine_code():
    (name, code), *others = resources.functions(LISTING).items()
    assert not others
    assert resources.kernel_name(name) == ("tiles_kernel", "4 2 1")
    way = resources.loop_way(code, "BMMA")
    # Both loads and both products, not the atomic operation of what is found.
    assert len(way) == 9
    assert [text.split()[0] for text in way if "BRA" not in text] == [
        "ISETP.GE.AND",
        "LDG.E.CONSTANT",
        "LDG.E.CONSTANT",
        "BMMA.168256.AND.POPC",
        "BMMA.168256.AND.POPC",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not native.cuda_status()[0], reason=f"CUDA library: {native.cuda_status()[1]}")
@pytest.mark.parametrize("length", [5, 32, 64, 100, 128, 256, 1024])
def test_on_the_device(length):
    generator = torch.Generator().manual_seed(0)
    width = (length + 7) // 8
    queries = torch.randint(0, 256, (37, width), dtype=torch.uint8, generator=generator)
    database = torch.randint(0, 256, (5000, width), dtype=torch.uint8, generator=generator)
    database[::3] = database[0]
    allow = torch.rand(5000, generator=generator) < 0.5
    labels = torch.randint(0, 4, (37,), generator=generator), torch.randint(0, 4, (5000,), generator=generator)
    on_gpu = queries.cuda(), database.cuda()

    def same(found, expected):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected))

    lengths = sorted({1, max(1, length // 2), length})
    same(
        hamming_distances(*on_gpu, lengths, backend="cuda"),
        hamming_distances(queries, database, lengths, backend="reference"),
    )
    for k in (1, 100, 5000):
        for mask in (None, allow):
            expected = search(queries, database, k, length, allow=mask, backend="reference")
            same(search(*on_gpu, k, length, allow=mask, backend="cuda"), expected)
    expected = radius_search(queries, database, length // 2, length, backend="reference")
    same(radius_search(*on_gpu, length // 2, length, backend="cuda"), expected)
    options = {"lengths": lengths, "topk": 700, "ndcg": (1, 33, 640, 5000)}
    found = evaluate_retrieval(*on_gpu, *(t.cuda() for t in labels), backend="cuda", **options)
    expected = evaluate_retrieval(queries, database, *labels, backend="reference", **options)
    torch.testing.assert_close(found.average_precision, expected.average_precision, rtol=1e-12, atol=1e-12)
    for rank in options["ndcg"]:
        assert found.ndcg_at(rank) == pytest.approx(expected.ndcg_at(rank), rel=1e-12)
    x = torch.randn(50, length)
    assert torch.equal(native.pack(x.cuda()).cpu(), native.pack(x))


def scan_units() -> list[str]:
    """What this device counts bits with: the values NHL_FAST_CUDA_SCAN takes here."""
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    return ["popc", "imma", *(["mma"] if major in (8, 9) else [])]


@pytest.mark.gpu
@pytest.mark.skipif(not native.cuda_status()[0], reason=f"CUDA library: {native.cuda_status()[1]}")
@pytest.mark.parametrize("unit", scan_units())
@pytest.mark.parametrize("kind", ["random", "few distinct", "misleading"])
@pytest.mark.parametrize("length", [8, 32, 64, 100, 128, 256, 512, 1024])
def test_top_k_on_the_device_with_a_sampled_limit(length, kind, unit, monkeypatch):
    if unit == "imma" and length > 512:
        pytest.skip("takes codes of 512 bits at most")
    monkeypatch.setenv("NHL_FAST_CUDA_SCAN", unit)
    generator = torch.Generator().manual_seed(1)
    n, width = 70_000, 4 * ((length + 31) // 32)
    queries = torch.randint(0, 256, (100, width), dtype=torch.uint8, generator=generator)
    database = torch.randint(0, 256, (n, width), dtype=torch.uint8, generator=generator)
    if kind == "few distinct":
        database = database[torch.randint(0, 7, (n,), generator=generator)]
    elif kind == "misleading":
        database[::4] = queries[0]  # where a sample of every fourth item looks
    allow = torch.rand(n, generator=generator) < 0.3
    for num, mask, k in ((100, None, 10), (100, allow, 100), (3, None, 1000), (3, allow, 2048), (3, None, 5000)):
        on_gpu = None if mask is None else mask.cuda()
        found = search(queries[:num].cuda(), database.cuda(), k, length, allow=on_gpu, backend="cuda")
        expected = search(queries[:num], database, k, length, allow=mask, backend="cpp")
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected)), (num, k, mask is not None)


@pytest.mark.gpu
@pytest.mark.skipif(not native.cuda_status()[0], reason=f"CUDA library: {native.cuda_status()[1]}")
def test_the_scan_asked_for_is_used_or_refused(monkeypatch):
    codes = torch.zeros(10, 5, dtype=torch.uint8).cuda()
    monkeypatch.setenv("NHL_FAST_CUDA_SCAN", "abacus")
    with pytest.raises(RuntimeError, match="NHL_FAST_CUDA_SCAN: expected"):
        search(codes, codes, 1, backend="cuda")
    monkeypatch.setenv("NHL_FAST_CUDA_SCAN", "mma")
    with pytest.raises(RuntimeError, match="words of 4 bytes" if "mma" in scan_units() else "no binary tensor cores"):
        search(codes, codes, 1, backend="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not native.cuda_status()[0], reason=f"CUDA library: {native.cuda_status()[1]}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_candidates_are_scored_on_the_device(dtype):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(20, 100, generator=generator)
    vectors = (20 * torch.randn(500, 100, generator=generator)).to(dtype)
    candidates = torch.randint(0, 500, (20, 30), generator=generator)
    codes = native.pack(vectors.float())
    for options in ({"vectors": vectors}, {"vectors": vectors, "metric": "product"}, {"codes": codes, "length": 77}):
        on_gpu = {key: x.cuda() if isinstance(x, torch.Tensor) else x for key, x in options.items()}
        found = rescore(queries.cuda(), candidates.cuda(), k=30, backend="cuda", **on_gpu)[0]
        expected = rescore(queries, candidates, k=30, backend="reference", **options)[0]
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-3)
