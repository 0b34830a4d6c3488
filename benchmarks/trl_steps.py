"""Ten steps each of TRL's SFT and DPO on picture codes, and of its GRPO with a reward on drawn pictures, from the shipped checkpoint.

    pip install trl==1.16.0
    python benchmarks/trl_steps.py [sft] [dpo] [grpo]

Prints the loss or reward of every step and the means of the first and the last three. Sixteen pictures of the tests are learned by heart.
"""

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset

import mmgpt
from mmgpt.data.emoji import drawing_prompt, load_emoji, picture
from mmgpt.interop.hf import MMGPTForConditionalGeneration, MMGPTProcessor, from_native
from mmgpt.interop.hf.processor import BEGIN_IMAGE, CODE, END, END_IMAGE

DATA = Path(__file__).parents[1] / "tests" / "data" / "emoji40.parquet"
STEPS, ROWS = 10, 16


def rows(gpt: mmgpt.GPT) -> list[dict[str, str]]:
    """Words and codes of pictures, as text: what stands in the stream, one token an id."""
    found = []
    for row in load_emoji(DATA)[:ROWS]:
        codes = gpt.ports["image"].codec.encode(picture(row)).flatten()
        found.append({"prompt": drawing_prompt(row.label, row.style) + END + BEGIN_IMAGE, "codes": "".join(CODE.format(code) for code in codes)})
    return found


def sft(gpt: mmgpt.GPT, model, tokenizer, settings: dict):
    from trl import SFTConfig, SFTTrainer

    data = [{"prompt": row["prompt"], "completion": row["codes"] + END_IMAGE + END} for row in rows(gpt)]
    args = SFTConfig(**settings, learning_rate=3e-4, per_device_train_batch_size=ROWS, max_length=None)
    return SFTTrainer(model, args, train_dataset=Dataset.from_list(data), processing_class=tokenizer), "loss", -1


def dpo(gpt: mmgpt.GPT, model, tokenizer, settings: dict):
    """Chosen: the picture of the words; rejected: another one's."""
    from trl import DPOConfig, DPOTrainer

    found = rows(gpt)
    others = found[1:] + found[:1]
    data = [
        {"prompt": a["prompt"], "chosen": a["codes"] + END_IMAGE + END, "rejected": b["codes"] + END_IMAGE + END}
        for a, b in zip(found, others, strict=True)
    ]
    args = DPOConfig(**settings, learning_rate=5e-5, per_device_train_batch_size=ROWS, max_length=None, beta=0.1)
    return DPOTrainer(model, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer), "loss", -1


def grpo(gpt: mmgpt.GPT, model, tokenizer, settings: dict):
    """Reward: how red the drawn picture is, mean of red less the mean of green and blue, in [-2, 2]."""
    from trl import GRPOConfig, GRPOTrainer

    count = model.config.written_grid[0] * model.config.written_grid[1]

    def redness(completion_ids: list[list[int]], **_) -> list[float]:
        pixels = model.decode_image_tokens(torch.tensor([ids[:count] for ids in completion_ids], device=model.device))
        return (pixels[:, 0] - pixels[:, 1:].mean(1)).mean((1, 2)).tolist()

    args = GRPOConfig(
        **settings, learning_rate=2e-4, per_device_train_batch_size=32, num_generations=8, max_completion_length=count, temperature=1.0, beta=0.0,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": row["prompt"]} for row in rows(gpt)])
    return GRPOTrainer(model, redness, args, train_dataset=data, processing_class=tokenizer), "reward", 1


def main(names: list[str]) -> int:
    gpt, bad = mmgpt.load("emoji"), 0
    for name in names:
        torch.manual_seed(0)
        tokenizer = MMGPTProcessor.from_native(gpt).tokenizer
        with tempfile.TemporaryDirectory() as folder:
            from_native(gpt).save_pretrained(f"{folder}/start")  # DPO loads a second one to compare with
            model = MMGPTForConditionalGeneration.from_pretrained(f"{folder}/start")
            settings = {"output_dir": folder, "max_steps": STEPS, "logging_steps": 1, "report_to": "none", "save_strategy": "no", "seed": 0}
            settings |= {"use_cpu": not torch.cuda.is_available(), "bf16": False, "gradient_checkpointing": False, "lr_scheduler_type": "constant"}
            trainer, figure, sign = {"sft": sft, "dpo": dpo, "grpo": grpo}[name](gpt, model, tokenizer, settings | {"disable_tqdm": True})
            trainer.train()
        values = [entry[figure] for entry in trainer.state.log_history if figure in entry]
        first, last = sum(values[:3]) / 3, sum(values[-3:]) / 3
        right = (last - first) * sign > 0 and len(values) == STEPS
        bad += not right
        print(f"{name}: {figure} {' '.join(f'{value:.4f}' for value in values)}")
        print(f"{name}: first three {first:.4f}, last three {last:.4f}: {'the right way' if right else 'NOT the right way'}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["sft", "dpo", "grpo"]))
