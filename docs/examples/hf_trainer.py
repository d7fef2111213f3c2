"""Hugging Face's Trainer: a tiny BERT with random weights and a nested layer learn to find lines of one topic.

A real model: `AutoModel.from_pretrained(FOLDER_OR_NAME)` and its tokenizer in place of `BertModel(config)` and words.
"""

import torch
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

import nhl_fast as nhl

TOPICS, WORDS, LENGTHS = 8, 200, (8, 16, 32)


class Hashed(torch.nn.Module):
    """What Trainer wants: a dict with the loss where labels are given, and the codes."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        layer = nhl.NestedHashLayer(encoder.config.hidden_size, LENGTHS)
        self.objective = nhl.NestedObjective(layer, nhl.losses.CSQ(TOPICS, LENGTHS, centers="nested"))

    def forward(self, input_ids, labels=None):
        features = self.encoder(input_ids).last_hidden_state.mean(1)
        out = {} if labels is None else {"loss": self.objective(features, labels).total}
        return {**out, "codes": self.objective.layer.encode(features)}


def lines(count):
    """Twelve words a line, each of the line's topic with even odds; ids 0 to WORDS - 1, a block of words a topic."""
    topics = torch.arange(count) % TOPICS
    block = WORDS // TOPICS
    own = topics[:, None] * block + torch.randint(block, (count, 12))
    words = torch.where(torch.rand(count, 12) < 0.5, own, torch.randint(WORDS, (count, 12)))
    return [{"input_ids": row, "labels": topic} for row, topic in zip(words, topics)]


torch.manual_seed(0)
config = BertConfig(vocab_size=WORDS, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
train, queries = lines(1600), lines(200)
arguments = TrainingArguments(
    output_dir="hf_trainer", num_train_epochs=6, per_device_train_batch_size=64, per_device_eval_batch_size=256,
    learning_rate=3e-3, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=75,
)  # fmt: skip
trainer = Trainer(Hashed(BertModel(config)), arguments, train_dataset=train)
trainer.train()
database, asked = trainer.predict(train), trainer.predict(queries)

found = nhl.evaluate_retrieval(
    asked.predictions, database.predictions, asked.label_ids, database.label_ids, lengths=LENGTHS, ties="expected"
).mean_average_precision
print("mAP:", *(f"{bits} bits {value:.3f}" for bits, value in found.items()))  # random codes: about 0.125
