"""Class-incremental learning with a memory of condensed images; killed, it goes on with the broken experience.

python strategies/condensed-replay/train.py                                   # digits, embedded
python strategies/condensed-replay/train.py --data fashion-mnist --width 32 --output runs/split
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger, TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

import fedcondense as fc
from fedcondense.avalanche import (
    CondensedBuffer,
    CondensedGDumb,
    CondensedReplay,
    buffer_metrics,
    maybe_load_checkpoint,
    save_checkpoint,
    split_benchmark,
)
from fedcondense.memory import Condenser
from fedcondense.networks import ConvNet


def main() -> None:
    """Train on the stream, an experience at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="digits", help="a name that `fedcondense data` lists, or npz:FILE, folder:DIR"
    )
    parser.add_argument("--data-root")
    parser.add_argument("--strategy", choices=["gdumb", "replay"], default="gdumb")
    parser.add_argument("--images", type=int, default=100, help="plain images whose bytes the memory may take")
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument(
        "--epochs", type=int, help="default: 300 over the memory's bytes (gdumb), 2 over the stream (replay)"
    )
    parser.add_argument(
        "--objective", choices=fc.OBJECTIVES, default="mmd", help="default: mmd, for classes that never meet the others"
    )
    parser.add_argument("--parametrization", help="default: multi-formation, or pixels where images are tiny")
    parser.add_argument("--steps", type=int, default=200, help="of condensing, an experience")
    parser.add_argument("--width", type=int, default=16, help="channels of the network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/condensed-replay"))
    arguments = parser.parse_args()
    checkpoint = arguments.output / "strategy.pt"
    asked = {name: str(value) for name, value in vars(arguments).items() if name not in ("output", "data_root")}
    kept = arguments.output / "arguments.json"
    if checkpoint.exists() and kept.exists() and json.loads(kept.read_text()) != asked:
        sys.exit(f"{checkpoint} is of other arguments ({kept}); give them, or another --output")
    arguments.output.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asked, indent=1))

    train, test = fc.load_data(arguments.data, arguments.data_root)
    benchmark = split_benchmark(train, test, arguments.experiences, seed=arguments.seed)
    is_tiny = min(train.spec.shape[1:]) < 16
    parametrization = arguments.parametrization or ("pixels" if is_tiny else "multi-formation")
    condenser = Condenser(arguments.objective, parametrization, steps=arguments.steps)
    buffer = CondensedBuffer(
        arguments.images * condenser.per_image,
        condenser=condenser,
        adaptive_size=False,  # how many classes come is known: none has to be condensed again
        total_num_groups=len(train.spec.classes),
        operations=train.spec.operations,
        mean=train.spec.mean,
        std=train.spec.std,
        seed=arguments.seed,
    )
    torch.manual_seed(arguments.seed)
    model = ConvNet(train.spec.shape, len(train.spec.classes), arguments.width, 2 if is_tiny else 3, "group")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    is_gdumb = arguments.strategy == "gdumb"
    loggers = [InteractiveLogger(), TensorboardLogger(arguments.output / "tensorboard")]
    metrics = [accuracy_metrics(experience=True, stream=True), buffer_metrics(images=True)]
    strategy = (CondensedGDumb if is_gdumb else CondensedReplay)(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        storage_policy=buffer,
        train_mb_size=32 if is_gdumb else 128,
        train_epochs=arguments.epochs or (300 // condenser.per_image if is_gdumb else 2),
        eval_mb_size=500,
        evaluator=EvaluationPlugin(*metrics, loggers=loggers),
    )
    strategy, done = maybe_load_checkpoint(strategy, checkpoint)
    for experience in benchmark.train_stream[done:]:
        strategy.train(experience)
        save_checkpoint(strategy, checkpoint)
    accuracies = strategy.eval(benchmark.test_stream)
    (name,) = [name for name in accuracies if name.startswith("Top1_Acc_Stream/eval_phase")]
    memory = arguments.output / "memory.safetensors"
    buffer = next(plugin.storage_policy for plugin in strategy.plugins if hasattr(plugin, "storage_policy"))
    buffer.save(memory, overwrite=True)
    result = {"accuracy": round(100 * accuracies[name], 2), "nbytes": buffer.nbytes, "images": len(buffer.buffer)}
    print(json.dumps(result | {"memory": str(memory)}))
    print(f"next: fedcondense show {memory} --output {arguments.output / 'memory.png'}")


if __name__ == "__main__":
    main()
