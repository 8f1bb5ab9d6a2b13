"""A vision-language model learns to read, side by side: headway and TRL's SFTTrainer.

    python benchmarks/vision_vs_trl.py [--size strip] [--steps 8] [--repeats 3] [--tuning lora]

Both train the same random Qwen3-VL (its layers and widths are options) on the same generated
well-log strips or crops, one a row, with the same adapter, optimizer and bf16 autocast on the same
threads; every side runs alone in its own process, in turns (A B C A B C …). A token counts if it is
real, a picture's included, alike for all sides. Loss on the answer alone. Printed: medians over all
timed steps of all repeats, their spread, peak memory of the process, and ratios, which are what
counts. The first step of each process is not timed. TRL's own processor needs torchvision for
videos; it is given one that leaves videos out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from sides import TRL_SAME, Step, headway_steps, in_turns, parser_of, table, work

SIDES = ("trl", "trl-no-checkpointing", "headway")
ADAPTER = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}"
    "{%- for part in message.content %}{%- if part.type == 'image' %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}{%- elif 'text' in part %}"
    "{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SPECIAL = (
    "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip


def make_rows(folder: Path, options: argparse.Namespace) -> None:
    """``train.jsonl`` and its pictures."""
    from headway.data.well_log import Options, write

    rows = (options.steps + 1) * options.batch
    write(Options(train=rows, eval=1, size=options.size, seed=5), folder / "rows")


def make_model(folder: Path, options: argparse.Namespace) -> None:
    """A random Qwen3-VL with a tokenizer of the answers, as a hub would serve it."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from headway.data.tokenizers import train_bpe

    with (folder / "rows/train.jsonl").open(encoding="utf-8") as lines:
        tokenizer = train_bpe((json.loads(x)["answer"] for x in lines), 2048, SPECIAL)
    tokenizer.chat_template = TEMPLATE
    tokenizer.pad_token = SPECIAL[0]
    ids = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in SPECIAL}
    width, layers = options.width, options.layers
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 3 * width,
            "num_hidden_layers": layers, "num_attention_heads": width // 64,
            "num_key_value_heads": max(1, width // 128), "head_dim": 64,
            "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": 0,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e6, "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": layers, "hidden_size": width, "num_heads": width // 64,
            "intermediate_size": 4 * width, "out_hidden_size": width, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0, 1, 2][: layers - 1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": options.max_pixels},
    ).save_pretrained(folder / "model")  # fmt: skip


def run_headway(folder: Path, options: argparse.Namespace) -> list[Step]:
    """headway's recipe vision."""
    adapter = {"kind": "lora", "rank": 16, "alpha": 16}
    task = {
        "base_model": str(folder / "model"),
        "tuning": adapter if options.tuning == "lora" else {"kind": "full"},
        "max_tokens": 4096,
        "data": {"train": str(folder / "rows/train.jsonl")},
    }
    steps, batch = options.steps + 1, options.batch
    return headway_steps("vision", task, steps=steps, batch=batch, threads=options.threads)


def processor_of(folder: Path):
    """Qwen3-VL's processor without videos, which alone would need torchvision."""
    from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    class Pictures(Qwen3VLProcessor):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **given):
            self.video_processor = None
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
            ids = tokenizer.convert_tokens_to_ids
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = ids(self.image_token), ids(self.video_token)
            self.image_ids, self.video_ids = [self.image_token_id], [self.video_token_id]
            self.audio_ids: list[int] = []
            self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
            self.vision_start_token_id = ids(self.vision_start_token)
            self.vision_end_token_id = ids(self.vision_end_token)

    place = folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(place)
    images = AutoImageProcessor.from_pretrained(place)
    return Pictures(images, tokenizer, chat_template=tokenizer.chat_template)


def trl_rows(folder: Path):
    """The same rows as TRL reads them: prompt, completion, and pictures that it decodes itself."""
    from datasets import Dataset, Features, Image, List, Value

    rows = []
    with (folder / "rows/train.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            parts = [{"type": "image", "text": None}, {"type": "text", "text": row["instruction"]}]
            said = [{"type": "text", "text": row["answer"]}]
            rows.append(
                {
                    "images": [{"bytes": None, "path": str(folder / "rows" / row["image"])}],
                    "prompt": [{"role": "user", "content": parts}],
                    "completion": [{"role": "assistant", "content": said}],
                }
            )
    turns = List(
        {
            "role": Value("string"),
            "content": List({"type": Value("string"), "text": Value("string")}),
        }
    )
    features = Features({"images": List(Image()), "prompt": turns, "completion": turns})
    return Dataset.from_list(rows, features=features)


def run_trl(folder: Path, options: argparse.Namespace, side: str) -> list[Step]:
    """TRL's SFTTrainer as a user configures it; seconds between its own step callbacks, the making
    of the batch included."""
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []
    # TRL recomputes activations unless told otherwise; "trl" leaves that as it is.
    faster = {} if side == "trl" else {"gradient_checkpointing": False}

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())

        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as runs:
        arguments = SFTConfig(
            output_dir=runs,
            per_device_train_batch_size=options.batch,
            max_length=None,
            **TRL_SAME,
            **faster,
        )
        trainer = SFTTrainer(
            model=AutoModelForImageTextToText.from_pretrained(folder / "model", dtype="float32"),
            args=arguments,
            train_dataset=trl_rows(folder),
            processing_class=processor_of(folder),
            peft_config=LoraConfig(task_type="CAUSAL_LM", **ADAPTER)
            if options.tuning == "lora"
            else None,
            callbacks=[Clock()],
        )
        seen = []
        compute = trainer.compute_loss

        def compute_and_count(wrapped, inputs, *args, **kwargs):
            counted = {
                "tokens": int(inputs["attention_mask"].sum()),
                "rows": len(inputs["image_grid_thw"]),
                "supervised": int((inputs["labels"][:, 1:] != -100).sum()),
            }
            seen.append(counted)
            return compute(wrapped, inputs, *args, **kwargs)

        trainer.compute_loss = compute_and_count
        trainer.train()
    seconds = [end - start for start, end in pairwise(ends)]
    return [{"seconds": s, **n} for s, n in zip(seconds, seen, strict=True)]


def main() -> None:
    parser = parser_of(__doc__, SIDES, steps=8)
    parser.add_argument("--size", default="strip", choices=("strip", "crop", "page"))
    parser.add_argument("--tuning", default="lora", choices=("lora", "full"))
    parser.add_argument("--width", type=int, default=256, help="of both parts of the model")
    parser.add_argument("--layers", type=int, default=4, help="of both parts of the model")
    parser.add_argument("--max-pixels", type=int, default=512 * 512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    side, folder = options.side, options.folder
    if side == "headway":
        return work(side, lambda: run_headway(folder, options), options.threads)
    if side:
        return work(side, lambda: run_trl(folder, options, side), options.threads)
    with tempfile.TemporaryDirectory() as place:
        make_rows(Path(place), options)
        make_model(Path(place), options)
        print(table(*in_turns(__file__, options, "--folder", place), unit="rows"))


if __name__ == "__main__":
    main()
