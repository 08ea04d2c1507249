"""A standard script with a `transformers.Trainer` trains sub-networks after two changed lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from instatune_deploy import elastic_trainer
from instatune_deploy.elastic.supernet import load_supernet
from tests.helpers import write_text_data, write_text_model

SPACE = {"depths": [1, 2, 3], "heads": [2, 4], "ffn": [16, 64]}


def script(make: object, directory: Path, steps: int, **options: object) -> Trainer:
    """As Hugging Face's examples have it, up to the trainer."""
    write_text_model(directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    rows = Dataset.from_parquet(str(write_text_data(directory / "data.parquet", 96, 1)))
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True))
    model = AutoModelForSequenceClassification.from_pretrained(directory / "model", num_labels=2)
    arguments = TrainingArguments(
        output_dir=str(directory / "out"), max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3,
        report_to="none", use_cpu=True, disable_tqdm=True, save_steps=4, logging_steps=1,
    )  # fmt: skip
    trainer: Trainer = make(  # type: ignore[operator]
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))},
        **options,
    )  # fmt: skip
    return trainer


def test_before_training_it_evaluates_as_the_plain_trainer_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = script(Trainer, tmp_path / "plain", 1).evaluate()
    torch.manual_seed(0)
    elastic = script(elastic_trainer, tmp_path / "elastic", 1, space=SPACE).evaluate()
    assert elastic["eval_accuracy"] == plain["eval_accuracy"]
    assert elastic["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-5)


def test_rows_without_labels_are_predicted_as_by_the_plain_trainer(tmp_path: Path) -> None:
    found = []
    for make, name, options in ((Trainer, "plain", {}), (elastic_trainer, "elastic", {"space": SPACE})):
        torch.manual_seed(0)
        trainer = script(make, tmp_path / name, 1, **options)
        found.append(trainer.predict(trainer.eval_dataset.remove_columns("label")))  # type: ignore[union-attr]
    plain, elastic = found
    assert elastic.label_ids is None
    assert np.allclose(elastic.predictions, plain.predictions, atol=1e-5)


def test_it_trains_goes_on_and_saves_a_super_network(tmp_path: Path) -> None:
    trainer = script(elastic_trainer, tmp_path / "a", 4, space=SPACE)
    supernet = trainer.supernet  # type: ignore[attr-defined]
    before = [parameter.clone() for parameter in supernet.model.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, supernet.model.parameters(), strict=True))
    assert trainer.state.log_history[0]["loss"] > 0
    trainer.args.max_steps = 5
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 5
    trainer.save_model(str(tmp_path / "saved"))
    loaded = load_supernet(tmp_path / "saved")
    assert loaded.space == supernet.space
    small, ids = loaded.extract(loaded.space.smallest).eval(), torch.tensor([[2, 6, 7, 3]])
    with torch.no_grad():
        expected = supernet.eval()({"input_ids": ids}, [supernet.space.smallest])[0].logits
        torch.testing.assert_close(small(input_ids=ids).logits, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").vocab_size > 0


def test_a_teacher_may_teach(tmp_path: Path) -> None:
    write_text_model(tmp_path / "model")
    teacher = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=2)
    trainer = script(elastic_trainer, tmp_path / "b", 1, space=SPACE, teacher=teacher, finetune={"importance": "none"})
    assert trainer.loss.gamma == "on"  # type: ignore[attr-defined]
    trainer.train()
