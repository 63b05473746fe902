"""The examples that Avalanche installs run with a condensed buffer, on digits as large as MNIST's."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark, with_classes_timeline
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.core import Agent
from avalanche.models import IncrementalClassifier, SimpleMLP
from avalanche.models.dynamic_modules import avalanche_model_adaptation
from avalanche.models.dynamic_optimizers import DynamicOptimizer
from avalanche.training import LearningWithoutForgetting, Naive
from avalanche.training.losses import MaskedCrossEntropy
from avalanche.training.plugins import ReplayPlugin
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import ToTensor

from fedcondense.avalanche import CondensedBuffer, maybe_load_checkpoint, save_checkpoint
from fedcondense.memory import Condenser

pytestmark = pytest.mark.filterwarnings("ignore")  # the examples are older than what they call
CPU = Namespace(cuda=-1)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Load an installed example by name, in a folder of its own."""

    def load(name: str) -> ModuleType:
        folder = next(Path(p) for p in sys.path if (Path(p) / "examples" / "online_replay.py").exists())
        spec = importlib.util.spec_from_file_location(f"avalanche_example_{name}", folder / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    monkeypatch.chdir(tmp_path)
    return load


@pytest.fixture(scope="module")
def mnist(digits: Any) -> Any:
    """A class called as torchvision's MNIST that needs no download: 30 digits of each class, of 28x28 pixels."""

    class MNIST(Dataset[tuple[Any, int]]):
        def __init__(self, root: str = "", train: bool = True, download: bool = False, transform: Any = None) -> None:
            data = digits.train if train else digits.test
            data = data.subset(data.per_class(30 if train else 10, torch.Generator().manual_seed(0)))
            large = F.interpolate(data.images.float(), size=(28, 28), mode="bilinear").round().byte()
            self.images = [Image.fromarray(image.squeeze(0).numpy()) for image in large]
            self.targets, self.transform = data.labels.tolist(), transform or ToTensor()

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.transform(self.images[index]), self.targets[index]

    return MNIST


def condensed(size: int, **more: Any) -> CondensedBuffer:
    return CondensedBuffer(size, condenser=Condenser("dm", network="convnet3-w16", steps=1), **more)


def test_online_replay(example: Any, mnist: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`examples/online_replay.py`: pieces of 32 images of a class-incremental stream, in stock `ReplayPlugin`."""
    module, buffers = example("online_replay"), list[CondensedBuffer]()

    def policy(max_size: int) -> CondensedBuffer:
        buffers.append(condensed(max_size, min_samples=20))
        return buffers[-1]

    module.MNIST, module.ReservoirSamplingBuffer = mnist, policy
    module.main(CPU)
    (buffer,) = buffers
    assert buffer.seen_classes == set(range(10))
    assert 80 <= len(buffer.buffer) <= 100
    assert "Top1_Acc_Stream/eval_phase/test_stream" in capsys.readouterr().out


def test_replay_with_a_confusion_matrix(example: Any, mnist: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`examples/confusion_matrix.py`: `nc_benchmark`, four epochs, a large memory."""
    module, buffer = example("confusion_matrix"), condensed(80)
    module.MNIST = mnist
    module.ReplayPlugin = lambda size: ReplayPlugin(mem_size=buffer.max_size, storage_policy=buffer)
    module.main(CPU)
    assert buffer.seen_classes == set(range(10))
    assert len(buffer.buffer) == 80
    assert "ConfusionMatrix_Stream/eval_phase/test_stream" in capsys.readouterr().out


def test_checkpointing(example: Any, mnist: Any) -> None:
    """`examples/checkpointing.py`, with replay and our functions: cut after two experiences, it ends as a whole run."""
    module, ends = example("checkpointing"), list[Tensor]()
    strategies: list[Any] = []

    def strategy(**told: Any) -> Naive:
        buffer = condensed(80)
        strategies.append(Naive(plugins=[ReplayPlugin(mem_size=80, storage_policy=buffer)], **told))
        return strategies[-1]

    def benchmark(experiences: int, stop: int) -> Any:
        bench = nc_benchmark(mnist(train=True), mnist(train=False), experiences, task_labels=False, seed=0)
        return Namespace(train_stream=bench.train_stream[:stop], test_stream=bench.test_stream[:1])

    module.Naive = strategy
    module.save_checkpoint, module.maybe_load_checkpoint = save_checkpoint, maybe_load_checkpoint
    for stops in ([5], [2, 5]):
        for stop in stops:
            module.SplitMNIST = lambda experiences, stop=stop: benchmark(experiences, stop)
            module.main_with_checkpointing(CPU)
        Path("checkpoint.pkl").unlink()
        assert strategies[-1].clock.train_exp_counter == 5
        ends.append(torch.cat([p.detach().flatten() for p in strategies[-1].model.parameters()]))
    assert len(strategies) == 3
    assert torch.equal(*ends)


def test_updatable_objects(example: Any, mnist: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`examples/updatable_objects.py`: no strategy, an `Agent` calls `post_adapt`; written for a GPU."""
    monkeypatch.setitem(sys.modules, "setGPU", ModuleType("setGPU"))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    module = example("updatable_objects")
    train = nc_benchmark(mnist(train=True), mnist(train=False), 5, task_labels=False, seed=0).train_stream
    agent = Agent()
    agent.replay = condensed(80, min_samples=20)
    agent.loss = MaskedCrossEntropy()
    agent.reg_loss = LearningWithoutForgetting(alpha=1, temperature=2)
    agent.model = SimpleMLP()
    agent.model.classifier = IncrementalClassifier(in_features=512)
    agent.add_pre_hooks(lambda a, e: avalanche_model_adaptation(a.model, e))
    agent.opt = DynamicOptimizer(torch.optim.SGD(agent.model.parameters(), lr=0.01), agent.model)
    for experience in with_classes_timeline(split_online_stream(train, experience_size=30, seed=0)):
        module.train_experience(agent, experience, epochs=1)
        assert 0 < len(agent.replay.buffer) <= 80
    assert agent.replay.seen_classes == set(range(10))
    assert len(agent.replay.buffer) == 80
