"""The peer's side of ``benchmarks/gpu.py``: TRL's SFTTrainer with packing. Imports no headway."""

from __future__ import annotations

import importlib.util
import resource
import tempfile
from typing import Any

from benchmarks.gpu_cells import Stopwatch, tokenizer_of
from benchmarks.gpu_plan import LEARNING_RATE, RANK, WARM_STEPS, Cell, Place


def run_trl(cell: Cell, place: Place, rows: list[list[Any]], watch: Stopwatch) -> dict[str, Any]:
    """Timed steps of SFTTrainer over the same documents, packed by TRL (best-fit decreasing)."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTTrainer

    on_gpu = place.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seen: list[Any] = []
    marks: list[int] = []  # microbatches seen by the end of each timed step

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= watch.done(state.global_step)
            if state.global_step >= WARM_STEPS:
                marks.append(len(seen))

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model_of(cell, place),
            args=options(cell, place, folder),
            train_dataset=Dataset.from_list(
                [{"input_ids": part.tolist()} for row in rows for part in row]
            ),
            processing_class=tokenizer_of(cell.shape, place.tiny),
            peft_config=adapter() if cell.tuning != "full" else None,
            callbacks=[Clock()],
        )
        compute = trainer.compute_loss

        def compute_and_count(wrapped, inputs, *args, **kwargs):
            mask = inputs.get("attention_mask")  # no sum is waited for while steps are timed
            seen.append(inputs["input_ids"].numel() if mask is None else mask.sum())
            return compute(wrapped, inputs, *args, **kwargs)

        trainer.compute_loss = compute_and_count
        trainer.train()
    tokens = sum(int(count) for count in seen[marks[0] : marks[-1]])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak
    note = f"attention: {attention()}; weights {'fp32' if cell.tuning == 'full' else 'bf16'}"
    return {"tokens": tokens, "seconds": watch.seconds, "steps": watch.steps, "peak_bytes": peak,
            "note": note}  # fmt: skip


def attention() -> str:
    """The fastest attention that is installed."""
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def adapter():
    """The same adapter as headway's."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"
    )


def model_of(cell: Cell, place: Place):
    """The random weights; frozen ones in bf16 or NF4, which is the peer's better case."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    chosen: dict[str, Any] = {"dtype": torch.float32 if cell.tuning == "full" else torch.bfloat16}
    if cell.tuning == "qlora":
        chosen["device_map"] = {"": torch.device(place.device)}
        chosen["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        place.model(cell.shape), attn_implementation=attention(), **chosen
    )


def options(cell: Cell, place: Place, folder: str):
    """As many rows a step, the same optimizer and precision."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=cell.microbatch,
        gradient_accumulation_steps=place.sizes.rows_a_step // cell.microbatch,
        max_steps=WARM_STEPS + place.sizes.most_steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=place.device == "cpu",
        packing=True,
        max_length=place.sizes.row_tokens,
        gradient_checkpointing=cell.recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
