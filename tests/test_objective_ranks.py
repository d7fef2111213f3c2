"""A training step of several ranks is that of one process on the joined batch: gloo, two and four ranks."""

import copy
import logging

import numpy as np
import pytest
import torch
from numeric import expected
from ranks import in_ranks
from torch.nn.parallel import DistributedDataParallel

import nhl_fast as nhl
from nhl_fast.core.ranks import join_rows
from nhl_fast.losses import REGISTRY, PerLength
from nhl_fast.losses.unlabelled import Contrastive, Neighbors

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")

LENGTHS, CLASSES, WIDTH, ROWS = (4, 8), 3, 6, 12
# Rows of each rank in two steps: unequal ones, and the last of an epoch, which leaves a rank without any.
SHARES = {2: ((7, 5), (3, 0)), 4: ((4, 3, 3, 2), (1, 1, 1, 0))}


class Own(torch.nn.Module):
    """A loss with a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, u, labels):
        return (u * self.scale - labels[:, None].to(u.dtype)).square().mean()


def problem(name, counting=None, **options):
    """counting: `label_options`, with two rows ignored, and where they are soft, rows of two classes."""
    torch.manual_seed(3)
    if name == "own":
        loss = PerLength([Own() for _ in LENGTHS], LENGTHS)
    elif name in ("neighbors", "contrastive"):
        loss = {"neighbors": Neighbors, "contrastive": Contrastive}[name](LENGTHS)
    else:
        loss = nhl.losses.build(name, num_classes=CLASSES, code_lengths=LENGTHS, num_train=ROWS + 3)
    backbone = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh())
    layer = nhl.NestedHashLayer(WIDTH, LENGTHS)
    torch.nn.init.normal_(layer.hash_layer.weight, std=0.5)
    objective = nhl.NestedObjective(layer, loss, 0.7, **options)
    inputs = torch.randn(ROWS, WIDTH)
    labels = inputs[:, :4].clone() if name == "neighbors" else torch.arange(ROWS) % CLASSES
    if counting is not None:
        loss.label_options(ignore_index=-1, **counting)
        labels = (torch.eye(CLASSES)[labels] + torch.eye(CLASSES)[0]) / 2 if counting.get("soft") else labels
        labels[[2, 9]] = -1
    return backbone, objective, inputs, labels


def steps(backbone, objective, inputs, labels, parts, around=None):
    """Values, gradients and banks of two steps with these rows."""
    found, around = {}, around or backbone
    labels = labels.to(inputs.dtype) if labels.is_floating_point() else labels
    for number, rows in enumerate(parts):
        for p in (*backbone.parameters(), *objective.parameters()):
            p.grad = None
        result = objective(around(inputs[rows]), labels[rows], rows)
        result.total.backward()
        for key in ("total", "losses", "distill", "weights"):
            found[f"{number} {key}"] = getattr(result, key).detach()
        named = {**dict(backbone.named_parameters()), **dict(objective.named_parameters())}
        found |= {f"{number} {key}": p.grad.clone() for key, p in named.items()}
        bank = getattr(objective.loss, "bank", None)
        if bank is not None:
            found[f"{number} bank"] = bank.u.detach().clone()
    return found


def share(rank, count):
    parts, rows = [], torch.arange(ROWS)
    for sizes in SHARES[count]:
        start = sum(sizes[:rank])
        parts.append(rows[start : start + sizes[rank]])
    return parts


def joined(count):
    return [torch.arange(sum(sizes)) for sizes in SHARES[count]]


def truth(backbone, objective, inputs, labels, count):
    backbone, objective = copy.deepcopy((backbone, objective))
    objective.backend = "reference"
    double = backbone.double(), objective.double(), inputs.double()
    return steps(*double, labels, joined(int(count)))


def of_rank(rank, count, cases):
    out = []
    for name, dtype, options in cases:
        backbone, objective, inputs, labels = problem(name, **options)
        backbone, objective, inputs = backbone.to(dtype), objective.to(dtype), inputs.to(dtype)
        around = DistributedDataParallel(backbone)
        found = steps(backbone, objective, inputs, labels, share(rank, count), around)
        out.append({key: value.numpy() for key, value in found.items()})
    return out


NAMES = [*REGISTRY, "own", "neighbors", "contrastive"]
CASES = [(name, dtype, {}) for name in NAMES for dtype in (torch.float64, torch.float32)]
CASES += [
    ("csq", torch.float64, {"teacher": "longer"}),
    ("dsh", torch.float32, {"weighting": "uniform"}),
    ("lcdsh", torch.float32, {"backend": "reference"}),
    ("dsh", torch.float64, {"counting": {"class_weights": (2.0, 1.0, 0.5)}}),
    ("dtsh", torch.float32, {"counting": {"soft": True}}),
    ("dhn", torch.float64, {"counting": {"soft": True}}),
]


# Four processes share the cores: every loss in float64, and the rest where there is time.
JOINED = [(2, CASES), (4, CASES[::2]), pytest.param(4, CASES[1::2], marks=pytest.mark.slow)]


@pytest.mark.parametrize(("count", "cases"), JOINED, ids=["2", "4", "4 of the rest"])
def test_a_step_is_that_of_the_joined_batch(count, cases):
    ranks = in_ranks(count, of_rank, cases)
    for number, (name, dtype, options) in enumerate(cases):
        bound = expected(truth, *problem(name, **options), str(count), dtype=dtype)
        for rank in ranks:
            found = {key: torch.from_numpy(value) for key, value in rank[number].items()}
            bound.check(found, (count, name, dtype, options))
        same = [key for key in ranks[0][number] if "bank" in key]
        assert all(np.array_equal(r[number][key], ranks[0][number][key]) for r in ranks for key in same)


def alone(rank, count):
    """process_group=None: the ranks' own rows alone, which is another objective."""
    backbone, objective, inputs, labels = problem("dch", process_group=None)
    return steps(backbone, objective, inputs, labels, share(rank, count)[:1])["0 losses"].numpy()


def around_all(rank, count):
    """DistributedDataParallel around backbone and objective."""
    backbone, objective, inputs, labels = problem("dsh")
    around = DistributedDataParallel(torch.nn.ModuleList([backbone, objective]))
    around.module.forward = lambda x, y, index: objective(backbone(x), y, index)
    for rows in share(rank, count)[:1]:
        around(inputs[rows], labels[rows], rows).total.backward()
    named = {**dict(backbone.named_parameters()), **dict(objective.named_parameters())}
    return {f"0 {key}": p.grad.numpy() for key, p in named.items()}


def elsewhere(rank, count):
    """The layer inside the DistributedDataParallel, the objective beside it, given its outputs."""
    backbone, objective, inputs, labels = problem("dsh", weighting="uniform")
    around = DistributedDataParallel(torch.nn.Sequential(backbone, objective.layer))
    assert not any("bank" in key for key, _ in torch.nn.ModuleList([around, objective]).named_buffers())
    for rows in share(rank, count)[:1]:
        objective(labels=labels[rows], index=rows, outputs=around(inputs[rows])).total.backward()
    named = {**dict(backbone.named_parameters()), **dict(objective.named_parameters())}
    return {f"0 {key}": p.grad.numpy() for key, p in named.items()}


def refused(rank, count):
    """One rank's wrong arguments are an error on every rank at once."""
    said = []
    _, objective, inputs, labels = problem("csq")
    for wrong in (labels + 7 * (rank == 1), labels if rank == 0 else torch.eye(CLASSES)[labels]):
        try:
            objective(inputs, wrong, None)
        except (ValueError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {error}")
    objective.eval()
    with torch.no_grad():  # no training step: the rank's own rows, and no other rank is waited for
        if rank == 0:
            said.append(objective(inputs, labels).losses.shape[0])
    return said


def logged(rank, count):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("nhl_fast").addHandler(handler)
    _, objective, inputs, labels = problem("csq")
    objective(inputs, labels), objective(inputs, labels)
    return lines


def banks(rank, count):
    """Ranks start from the first rank's bank, whatever theirs held; checkpoints hold it."""
    backbone, objective, inputs, labels = problem("dsh")
    if rank == 0:
        with torch.no_grad():
            objective.loss.bank.u[ROWS] = 5.0
            objective.loss.bank.labels[ROWS] = 2
            objective.loss.bank.written[ROWS] = True
    rows = share(rank, count)[0]
    objective(backbone(inputs[rows]), labels[rows], rows).total.backward()
    return {key: value.numpy() for key, value in objective.state_dict().items() if "bank" in key}


def sharded(rank, count):
    """FSDP of the backbone beside a replicated head."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    backbone, objective, inputs, labels = problem("dch")
    fully_shard(backbone, mesh=init_device_mesh("cpu", (count,)))
    rows = share(rank, count)[0]
    objective(backbone(inputs[rows]), labels[rows], rows).total.backward()
    found = {f"0 {key}": p.grad.full_tensor().numpy() for key, p in backbone.named_parameters()}
    return found | {f"0 {key}": p.grad.numpy() for key, p in objective.named_parameters()}


def several(rank, count, names):
    return {name: globals()[name](rank, count) for name in names}


@pytest.fixture(scope="module")
def two():
    return in_ranks(2, several, ["alone", "logged", "around_all", "elsewhere", "refused", "banks", "sharded"])


def test_without_a_group_ranks_stand_alone(two):
    assert not np.allclose(two[0]["alone"], two[1]["alone"])


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [("around_all", "dsh", {}), ("elsewhere", "dsh", {"weighting": "uniform"}), ("sharded", "dch", {})],
)
def test_data_parallel_around_all_and_sharded_backbones(two, kind, name, options):
    bound = expected(truth, *problem(name, **options), "2")
    for rank in two:
        for key, value in rank[kind].items():
            error = (torch.from_numpy(value).double() - bound.truth[key]).norm().item()
            assert error <= bound.bound(key), (kind, key, error)


def test_one_ranks_error_is_told_to_all(two):
    first, second = two[0]["refused"], two[1]["refused"]
    assert first[0].startswith("RuntimeError: process_group: rank 1 got arguments that it refused")
    assert second[0].startswith("ValueError: labels: expected class ids from 0 to 2")
    assert first[1] == second[1]
    assert first[1].startswith("ValueError: process_group: expected arguments of one dtype and shape of rows")
    assert first[2:] == [len(LENGTHS)]


def test_the_group_is_said_once_by_the_first_rank(two):
    line = "NestedObjective: a training step joins the rows of the process group's 2 ranks"
    assert [rank["logged"] for rank in two] == [[line], []]


def test_banks_start_from_the_first_ranks(two):
    first, second = two[0]["banks"], two[1]["banks"]
    assert set(first) == {"loss.bank.u", "loss.bank.labels", "loss.bank.written"}
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert (first["loss.bank.u"][ROWS] == 5).all()
    assert first["loss.bank.labels"][ROWS] == 2
    assert first["loss.bank.written"].sum() == ROWS + 1


def on_devices(rank, count, kind):
    """Rows joined on every rank's device, with the gradient of its own; and of two ranks, a step."""
    device = torch.device(kind, rank if kind == "cuda" else None)
    own = torch.full((3 - rank, 2), float(rank + 1), device=device, requires_grad=True)
    x, ids = join_rows([own, torch.arange(3 - rank, device=device)], torch.distributed.group.WORLD)
    (x.sum(1) * (1 + ids)).sum().backward()
    found = {"joined": x.detach().cpu().numpy(), "ids": ids.cpu().numpy(), "gradient": own.grad.cpu().numpy()}
    if count > 1:
        backbone, objective, inputs, labels = (part.to(device) for part in problem("dsh"))
        step = steps(backbone, objective, inputs, labels, share(rank, count), DistributedDataParallel(backbone))
        found["step"] = {key: value.cpu().numpy() for key, value in step.items()}
    return found


CARDS = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")


@pytest.mark.parametrize(
    ("backend", "kind"), [("gloo", "cpu"), pytest.param("nccl", "cuda", marks=[pytest.mark.gpu, CARDS])]
)
def test_ranks_on_their_devices(backend, kind):
    count = 2 if kind == "cpu" else min(2, torch.cuda.device_count())
    whole = np.concatenate([np.full((3 - rank, 2), rank + 1.0) for rank in range(count)])
    for rank, found in enumerate(in_ranks(count, on_devices, kind, backend=backend)):
        assert np.array_equal(found["joined"], whole)
        assert found["ids"].tolist() == [0, 1, 2, 0, 1][: len(whole)]
        assert np.array_equal(found["gradient"], count * np.arange(1.0, 4 - rank)[:, None] * np.ones(2))
        if count > 1:
            bound = expected(truth, *problem("dsh"), str(count))
            bound.check({key: torch.from_numpy(value) for key, value in found["step"].items()}, rank)


def test_groups_are_checked():
    layer, loss = nhl.NestedHashLayer(4, LENGTHS), nhl.losses.CSQ(num_classes=3, code_lengths=LENGTHS)
    with pytest.raises(ValueError, match="process_group: expected one of 'auto', got 'all'"):
        nhl.NestedObjective(layer, loss, process_group="all")
    with pytest.raises(TypeError, match=r"process_group: expected None, 'auto' or a torch.distributed process group"):
        nhl.NestedObjective(layer, loss, process_group=3)
