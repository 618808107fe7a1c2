"""The engine's device path without a device: refusals, KV of its own, and no mixed devices.

torch's fake tensors know on which device each would lie and refuse what a GPU would refuse, so the
forward pass is shown to stay on one; that its kernels give the right numbers is not.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine_builders import BOTH, KnownModel, World, greedy, torch_host, write_known_models
from engine_processes import Unit
from mux_core.engine import Grant, Phase
from mux_core.errors import CapacityError
from mux_core.llm import Dtype
from mux_runtime.engines.checkpoint_files import read_model_config
from mux_runtime.engines.host import UnsupportedVersion
from mux_runtime.engines.torch.attention import Span, StepAttention
from mux_runtime.engines.torch.device import CPU, open_device, private_memory
from mux_runtime.engines.torch.layout import layout
from mux_runtime.engines.torch.model import DenseModel
from mux_runtime.engines.torch.paging import PagedKv
from mux_runtime.engines.torch.start import Settings, TorchStart
from mux_runtime.kvpool.allocator import Owner

pytestmark = pytest.mark.engine
UNIT_BYTES = 2048
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KnownModel]:
    return write_known_models(Path(tmp_path_factory.mktemp("models")))


@pytest.mark.parametrize(
    ("device", "private", "message"),
    [
        pytest.param("cuda", False, "cannot share a KV pool in GPU memory", id="in a unit"),
        pytest.param("cuda", True, "sees no GPU here", marks=NO_GPU, id="no GPU"),
        pytest.param("tpu", True, "has cpu and cuda", id="another kind"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused_by_name(
    device: str, private: bool, message: str
) -> None:
    with pytest.raises(UnsupportedVersion, match=message):
        open_device(device, private_kv=private)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((), "cannot share a KV pool in GPU memory", id="as a unit starts it"),
        pytest.param(("--private-kv",), "sees no GPU here", marks=NO_GPU, id="alone, no GPU"),
    ],
)
async def test_a_host_process_on_a_gpu_says_why_it_cannot_serve(
    models: dict[str, KnownModel], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    async with Unit(tmp_path) as unit:
        with pytest.raises(UnsupportedVersion, match=message):
            await unit.start(models["llama"], Phase.DECODE, 1, "--device", "cuda", *arguments)


def test_a_host_with_kv_of_its_own_gives_the_same_tokens_and_leaves_the_pool_alone(
    models: dict[str, KnownModel],
) -> None:
    world = World()
    driver = world.drive(torch_host(models["llama"], world, BOTH, private_kv=True), "llama")
    asked = {str(n): models["llama"].sure_prompt(n, 12) for n in (3, 17, 40)}
    for rid, (prompt, _) in asked.items():
        driver.add(rid, prompt, greedy(12))
    driver.run(budget=32)
    assert {rid: driver.output(rid) for rid in asked} == {r: t for r, (_, t) in asked.items()}
    assert (world.pool.memory == 0xFF).all()
    stats = driver.host.stats()
    assert (stats.device_bytes, stats.sms) == (0, 0)


def test_kv_that_does_not_fit_the_device_says_how_much(
    models: dict[str, KnownModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    world = World()
    geometry = torch_host(models["llama"], world).geometry
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(CapacityError, match=r"no 4\.0 MiB of GPU memory for KV"):
        private_memory(world.pool, CPU, geometry)


@pytest.fixture
def fake_gpu() -> Iterator[torch.device]:
    with FakeTensorMode():
        yield torch.device("cuda", 0)


def spans(kv: PagedKv, counts: Sequence[tuple[int, int]]) -> list[Span]:
    """Requests that have run `start` tokens and run `count` more, each in rows of its own."""
    made, first = [], 0
    for start, count in counts:
        g = kv.geometry
        rows = g.rows_for(start + count)
        runs = [tuple(range(first + r * g.row_units, first + (r + 1) * g.row_units, g.run_units))
                for r in range(rows)]  # fmt: skip
        made.append(Span(start=start, count=count, table=kv.table(runs)))
        first += rows * g.row_units
    return made


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([(5, 1), (9, 1)], id="decodes of two lengths"),
        pytest.param([(5, 1), (5, 1)], id="decodes of one length"),
        pytest.param([(0, 20)], id="prefill"),
        pytest.param([(16, 20)], id="prefill after a part"),
        pytest.param([(40, 1), (0, 7), (3, 30)], id="all of it"),
    ],
)
def test_a_forward_pass_stays_on_its_device(
    models: dict[str, KnownModel], fake_gpu: torch.device, name: str,
    counts: Sequence[tuple[int, int]],
) -> None:  # fmt: skip
    folder = models[name].folder
    config = read_model_config(folder)
    start = TorchStart(Settings(model_dir=folder, pool="", arena="", phases=BOTH,
                                unit_bytes=UNIT_BYTES))  # fmt: skip
    weights = {w.name: torch.empty(w.shape, device=fake_gpu)
               for w in layout(config, Dtype.FLOAT32.itemsize).weights}  # fmt: skip
    model = DenseModel(config, weights)
    model.warm_up()
    kv = PagedKv(torch.empty(1 << 20, device=fake_gpu), start.geometry, UNIT_BYTES)
    asked = spans(kv, counts)
    attend = StepAttention(kv, asked)
    tokens = torch.zeros(sum(s.count for s in asked), dtype=torch.int64, device=fake_gpu)
    hidden = model.forward(tokens, attend.positions, attend)
    logits = model.logits(hidden[[0]])
    assert logits.device == fake_gpu
    assert logits.shape == (1, config.geometry.vocab)


def test_the_fake_gpu_notices_a_mixed_device(fake_gpu: torch.device) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(2, device=fake_gpu) + torch.empty(2)


def test_a_step_that_emits_nothing_still_waits_for_the_device(
    models: dict[str, KnownModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[object] = []
    monkeypatch.setattr(type(CPU), "wait_idle", lambda device: waits.append(device))
    world = World()
    host = torch_host(models["llama"], world)
    host.add("a", models["llama"].prompt(30), greedy(2), prompt_len=30)
    lease = world.allocator.lease(Owner("llama", 0), host.geometry, 4)
    before = len(waits)
    result = host.step(Grant(step=1, phases=BOTH, token_budget=8, max_seqs=4, lease=lease))
    assert (result.prefill_tokens, result.outputs, len(waits) - before) == (8, (), 1)
