# SPDX-License-Identifier: Apache-2.0
"""A classification task of one's own, from records to accuracy: python examples/classify.py BASE.nemo FOLDER

BASE.nemo is any GPT or Llama base, such as the quickstart's; records, adapter and results go to FOLDER.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from nemo_launcher import Model, train

TOPICS = {
    "weather": ["rain", "a storm", "fog", "sunshine", "snow"],
    "sport": ["a final", "a marathon", "a transfer", "a penalty", "a record"],
    "music": ["a concert", "an album", "an opera", "a festival", "a choir"],
    "travel": ["a ferry", "a delayed train", "a new airport", "a road closure", "a cruise"],
    "food": ["a bakery", "a harvest", "a recipe", "a market", "a vineyard"],
}
PLACES = ["Lisbon", "Oslo", "Naples", "Cork", "Ghent", "Riga", "Bergen", "Graz"]
TEMPLATE = {
    "taskname": "topics",
    "prompt_template": "text: {text} topic: {topic}",
    "answer_only_loss": True,
    "answer_field": "topic",
    "truncate_field": "text",
}


def write_records(folder: Path, train_records: int, validation_records: int) -> tuple[Path, Path]:
    """Write labelled records as JSON Lines; return the files for training and validation."""
    draw = random.Random(1234)
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.jsonl", folder / "validation.jsonl"
    for path, count in zip(files, (train_records, validation_records), strict=True):
        lines = []
        for number in range(count):
            topic = list(TOPICS)[number % len(TOPICS)]
            text = f"The news from {draw.choice(PLACES)} today is about {draw.choice(TOPICS[topic])}."
            lines.append(json.dumps({"taskname": "topics", "text": text, "topic": topic}))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def main() -> None:
    """Train an adapter, then compare its answers with the labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=200, help="number of training records")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    folder = options.folder.absolute()
    train_file, validation_file = write_records(folder, options.records, 50)

    model = {
        "language_model_path": str(options.base.absolute()),
        "tensor_model_parallel_size": 1,
        "new_tasks": ["topics"],
        "task_templates": [TEMPLATE],
        "data": {"train_ds": [str(train_file)], "validation_ds": [str(validation_file)]},
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "optim": {"lr": 1e-3, "sched": {"warmup_steps": 5}},
    }
    trainer = {"devices": 1, "accelerator": "auto", "max_epochs": options.epochs, "val_check_interval": 1.0}
    run = {"task_name": "topics", "results_dir": str(folder / "adapter_learning_topics")}
    section = {"run": run, "trainer": trainer | {"precision": 32}, "model": model}
    result = train(["adapter_learning=llama/squad"], {"adapter_learning": section})

    answers = Model.load(options.base, adapter=result.adapter).generate(validation_file, tokens_to_generate=5)
    labels = [json.loads(line)["topic"] for line in validation_file.read_text(encoding="utf-8").splitlines()]
    right = sum(answer.text == label for answer, label in zip(answers, labels, strict=True))
    print(f"accuracy: {right} of {len(labels)} ({right / len(labels):.0%}), adapter {result.adapter}")


if __name__ == "__main__":
    main()
